"""The panels as a Grafana dashboard, in Grafana's own JSON."""

from __future__ import annotations

import itertools
import string
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from tools.monitoring.panels import ROWS, Panel

FILE = Path(__file__).parent / "serl.dashboard.json"
_WIDTH, _HEIGHT = 8, 8  # three panels fill a line of Grafana's 24 columns
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboard_json() -> str:
    """The dashboard, as Grafana imports and provisions it."""
    built = (
        dashboard.Dashboard("SERL")
        .uid("serl")
        .tags(["serl", "ray", "vllm"])
        .description("Training runs of SERL: what Ray's exporters say of them and of their engines.")
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_run_variable())
    )
    numbers = itertools.count(1)
    for row in ROWS:
        built = built.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            built = built.with_panel(_panel(panel).id(next(numbers)))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _run_variable() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("run")
        .label("run")
        .datasource(_SOURCE)
        .query("label_values(ray_serl_weights_seq_no, run)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(_WIDTH)
        .height(_HEIGHT)
        .legend(common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM))
    )
    if panel.stacked:
        stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
        built = built.stacking(stacking).fill_opacity(30)
    for letter, curve in zip(string.ascii_uppercase, panel.curves, strict=False):
        query = prometheus.Dataquery().ref_id(letter).expr(curve.expression).legend_format(curve.legend)
        built = built.with_target(query)
    return built
