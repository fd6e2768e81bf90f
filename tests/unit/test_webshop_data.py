from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from webshop_helpers import record

from envs.webshop.catalogue import ProductReader
from envs.webshop.data_files import DATA_VARIABLE, find_files, load_catalogue, stream_records
from envs.webshop.nouns import fallback_nouns, read_nouns
from envs.webshop.packed import PACK_FOLDER, PackedCatalogue, PackError
from envs.webshop.products import MalformedRecordError, read_product
from envs.webshop.provider import make_provider
from envs.webshop.shop import Shop
from tools.make_webshop_catalogue import main as make_catalogue
from tools.prepare_webshop import main as prepare


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "webshop"
    assert make_catalogue(["--out", str(folder), "--seed", "5", "--products-per-kind", "3"]) == 0
    return folder


@pytest.fixture
def full_folder(small_folder: Path) -> Path:
    (small_folder / "items_shuffle_1000.json").rename(small_folder / "items_shuffle.json")
    (small_folder / "items_ins_v2_1000.json").rename(small_folder / "items_ins_v2.json")
    return small_folder


@pytest.mark.parametrize(
    ("pricing", "tag", "prices"),
    [
        (None, "$100.0", (100.0,)),
        ("", "$100.0", (100.0,)),
        ("$1,299.00", "$1299.0", (1299.0,)),
        ("$20.66 - $29.20", "$20.66 to $29.2", (20.66, 29.2)),
        ("$9.99$5$1", "$9.99 to $5.0", (9.99, 5.0)),
    ],
)
def test_prices_are_read_as_the_original_reads_them(pricing: str | None, tag: str, prices: tuple) -> None:
    product = read_product(record("A", pricing=pricing), {}, {})
    assert (product.price_tag, product.pricing) == (tag, prices)


def test_a_record_becomes_a_product() -> None:
    annotation = {"attributes": ["wool"], "instruction": "Find me wool", "instruction_attributes": ["wool"]}
    people = [
        {"instruction": "i want wool.", "instruction_attributes": ["wool"], "instruction_options": ["red"]}
    ]
    product = read_product(record("A", small_description="One line"), {"A": annotation}, {"A": people})
    assert product.options == {"color": ("red", "navy | white")}
    assert (product.bullets, product.query, product.attributes) == (("One line",), "shirts", ("wool",))
    assert product.instruction is not None and product.human_instructions[0].options == ("red",)
    assert product.search_text == (
        "plain cotton shirt a shirt for every day. one line color: red, navy | white"
    )
    assert read_product(record("A"), {}, {}).attributes == ("DUMMY_ATTR",)


def test_half_a_surrogate_pair_keeps_no_product_out_of_the_shop() -> None:
    options = {"Size\ud800": [{"value": "X\udc00L"}]}
    product = read_product(record("A", name="Cut \ud83d", customization_options=options), {}, {})
    assert product.title == "Cut \ufffd" and product.options == {"size\ufffd": ("x\ufffdl",)}


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("not a record", "not an object"),
        ({"name": "no asin"}, "asin is None"),
        (record("A", name=None), "name is None"),
        (record("A", pricing="cheap"), "pricing is 'cheap'"),
        (record("A", pricing="$1.2.3"), "pricing"),
        (record("A", small_description=[1]), "small_description"),
        (record("A", customization_options={"Color": ["red"]}), "customization_options 'Color'"),
        (record("A", customization_options=["red"]), "customization_options"),
    ],
)
def test_malformed_records_say_what_is_wrong(damaged: Any, words: str) -> None:
    with pytest.raises(MalformedRecordError, match=words):
        read_product(damaged, {}, {})


def test_malformed_products_are_named_skipped_and_counted(
    small_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_folder / "items_shuffle_1000.json"
    items = json.loads(path.read_text())
    damaged = record(items[0]["asin"], name=7)
    write_json(path, [damaged, record("nan"), record("WAYTOOLONGASIN"), *items, items[1], 3])
    provider = make_provider({"catalogue": "small", "data": str(small_folder)})
    with caplog.at_level(logging.INFO):
        skipped = provider.task_set("train").skipped
    assert len(skipped) == 2
    assert skipped[0] == f"product 0 ({items[0]['asin']}): name is 7, expected text"
    assert skipped[1] == "product 184 (no asin): not an object but int"
    report = provider.shop.catalogue.report
    assert report.num_left_out == 3 and len(provider.shop.catalogue) == 180
    assert "180 products, 2 malformed and skipped, 3 left out" in caplog.text
    assert "title nouns from the generator" in caplog.text
    strict = make_provider({"catalogue": "small", "data": str(small_folder), "strict": True})
    with pytest.raises(ValueError, match="2 malformed products: product 0"):
        strict.task_set("train")


def test_missing_data_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"not set: WebShop's setup\.sh.*export WEBSHOP_DATA"):
        make_provider({"catalogue": "small"})
    with pytest.raises(FileNotFoundError, match=r"products of catalogue 'small'.*setup\.sh"):
        make_provider({"catalogue": "small", "data": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="no folder"):
        make_provider({"catalogue": "small", "data": str(tmp_path / "nowhere")})
    with pytest.raises(FileNotFoundError, match=r"tools\.prepare_webshop --catalogue full"):
        make_provider({"catalogue": "full", "data": str(tmp_path)})


def test_people_s_goals_need_their_file(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(small_folder))
    assert len(make_provider({"catalogue": "small", "human_goals": True}).task_set("train")) > 100
    (small_folder / "items_human_ins.json").unlink()
    assert len(make_provider({"catalogue": "small"}).task_set("train")) > 100
    with pytest.raises(FileNotFoundError, match=r"items_human_ins\.json"):
        make_provider({"catalogue": "small", "human_goals": True})


def test_a_small_catalogue_may_have_another_name_if_there_is_only_one(small_folder: Path) -> None:
    path = small_folder / "items_shuffle_1000.json"
    path = path.rename(small_folder / "items_shuffle_mine.json")
    assert find_files(small_folder, "small").products == path
    (small_folder / "items_shuffle_other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"items_shuffle_mine\.json, items_shuffle_other\.json"):
        find_files(small_folder, "small")


def test_the_content_hash_follows_any_product(small_folder: Path) -> None:
    arguments = {"catalogue": "small", "data": str(small_folder)}
    before = make_provider(arguments).task_set("train")
    assert make_provider(arguments).task_set("train") == before
    path = small_folder / "items_shuffle_1000.json"
    items = json.loads(path.read_text())
    items[17]["full_description"] += " New."
    write_json(path, items)
    after = make_provider(arguments).task_set("train")
    assert after.tasks == before.tasks and after.content_hash != before.content_hash


def test_records_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.webshop.data_files._CHUNK_CHARACTERS", 7)
    records = [{"a": "x" * 30, "b": [1, 2, "]"]}, 5, "text, and more", []]
    path = write_json(tmp_path / "items.json", records)
    assert list(stream_records(path)) == records
    path.write_text('[{"a": 1}, {"b": ')
    stream = stream_records(path)
    assert next(stream) == {"a": 1}
    with pytest.raises(ValueError, match=r"items\.json is not a JSON array of products: it breaks off"):
        next(stream)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"does not begin with \["):
        list(stream_records(path))


def test_a_byte_order_mark_is_no_part_of_a_file(small_folder: Path) -> None:
    plain = load_catalogue(find_files(small_folder, "small"))
    for file in small_folder.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_catalogue(find_files(small_folder, "small")).fingerprint == plain.fingerprint


def test_files_of_another_shape_are_named(small_folder: Path) -> None:
    files = find_files(small_folder, "small")
    write_json(files.annotations, [])
    with pytest.raises(ValueError, match=r"items_ins_v2_1000\.json holds list"):
        load_catalogue(files)
    assert files.nouns is not None
    write_json(files.nouns, {"A": "noun"})
    with pytest.raises(ValueError, match=r"title_nouns\.json: not a file of title nouns"):
        read_nouns(files.nouns)


def test_title_nouns_come_from_their_file_or_from_the_words(
    small_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fallback_nouns("The 2 Men's Black T-Shirt (3D) for men") == (
        "men",
        "black",
        "t",
        "shirt",
        "3d",
        "men",
    )
    plain = write_json(tmp_path / "nouns.json", {"A": ["mug", "mug"]})
    assert read_nouns(plain).of("A", "Red Cup") == ("mug", "mug")
    assert read_nouns(plain).of("B", "Red Cup") == ("red", "cup")
    (small_folder / "title_nouns.json").unlink()
    with caplog.at_level(logging.INFO):
        tasks = make_provider({"catalogue": "small", "data": str(small_folder)}).task_set("train")
    assert tasks.notes == ("title nouns from title words less stop words",)
    assert "title nouns from title words less stop words" in caplog.text
    assert "prepare_webshop" in caplog.text


def test_a_prepared_catalogue_is_the_same_shop_from_mapped_files(full_folder: Path) -> None:
    items = json.loads((full_folder / "items_shuffle.json").read_text())
    write_json(full_folder / "items_shuffle.json", [3, *items])
    assert prepare(["--data", str(full_folder), "--catalogue", "full", "--model", "no_such_model"]) == 0
    packed = PackedCatalogue(full_folder / PACK_FOLDER)
    reader = ProductReader(
        *(json.loads((full_folder / n).read_text()) for n in ("items_ins_v2.json", "items_human_ins.json"))
    )
    products = list(reader.read(items))
    assert len(packed) == len(products) == 180 and len(packed.report.malformed) == 1
    assert [packed.titled(number).product for number in range(180)] == products
    assert [packed.number_of(product.asin) for product in products] == list(range(180))
    with pytest.raises(KeyError):
        packed.number_of("B000000000")
    full = make_provider({"catalogue": "full", "data": str(full_folder), "human_goals": True})
    memory = Shop.open(load_catalogue(find_files_as_small(full_folder)))
    assert full.make_env().blocking
    assert full.shop.goals(human=True) == memory.goals(human=True)
    assert full.shop.goals(human=False) == memory.goals(human=False)
    for query in ("red shirt", "organic tea", "rubber sole shoes"):
        assert full.shop.search(query) == memory.search(query)
    listed = (full_folder / PACK_FOLDER / "unreachable_goals.txt").read_text()
    assert listed == ""
    (full_folder / PACK_FOLDER / "line_ends.npy").write_bytes(b"")
    with pytest.raises(PackError, match="is not a prepared catalogue"):
        make_provider({"catalogue": "full", "data": str(full_folder)})


def find_files_as_small(folder: Path):
    (folder / "items_shuffle.json").rename(folder / "items_shuffle_1000.json")
    return find_files(folder, "small")


def test_preparing_lists_the_goals_that_cannot_be_met(
    small_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert prepare(["--data", str(small_folder), "--model", "no_such_model"]) == 0
    listed = (small_folder / "unreachable_goals.txt").read_text().split()
    assert f"{len(listed)} of them cannot be met in full" in caplog.text
    provider = make_provider({"catalogue": "small", "data": str(small_folder)})
    splits = ("train", "valid", "test")
    assert sorted(listed) == sorted(g for split in splits for g in provider.unreachable_goals(split))
    assert prepare(["--data", str(small_folder / "nowhere")]) == 2
