"""The words of the generated catalogue: kinds of products, what they can be like, what one can choose."""

from __future__ import annotations

from dataclasses import dataclass

BRANDS = (
    "Almora Birchwell Calder Dunmore Eastvale Fenwick Galloway Harrow Innisfree Juniper Kestrel Larkin Maplecroft "
    "Norvell Oakhurst Pemberly Quillon Ravenna Silverton Tamarind Umbra Verity Westbourne Yarrow Zephyr Ashgrove "
    "Brightleaf Cloverdale Driftwood Elmhurst"
).split()
LINES = "Classic Daily Original Select Signature Studio Urban Essential Heritage Prime".split()

OPTION_VALUES = {
    "color": "black white red blue green yellow pink purple brown grey navy beige orange teal ivory".split(),
    "finish": "oak walnut redwood maple ebony cherry".split(),
    "case color": "silver graphite titanium gold bronze".split(),
    "size": "x-small small medium large x-large xx-large".split(),
    "shoe size": ("6", "6.5", "7", "7.5", "8", "8.5", "9", "9.5", "10"),
    "pack": ("pack of 1", "pack of 2", "pack of 3", "pack of 6", "pack of 12"),
    "flavor": "vanilla chocolate strawberry lemon caramel cinnamon coconut raspberry".split(),
    "scent": "lavender rose citrus sandalwood jasmine eucalyptus unscented".split(),
    "capacity": ("32gb", "64gb", "128gb", "256gb", "512gb"),
    "length": ("3 feet", "6 feet", "10 feet", "15 feet"),
    "volume": ("2 ounce", "4 ounce", "8 ounce", "16 ounce"),
    "dimensions": ('16" x 16"', '18" x 18"', '20" x 20"', '24" x 36"', '30" x 40"'),
    "style": "modern rustic vintage minimalist bohemian".split(),
    "weight": ("2 pounds", "5 pounds", "10 pounds", "15 pounds"),
    "fit": "regular slim relaxed".split(),
}


@dataclass(frozen=True, slots=True)
class ProductKind:
    """``price_range`` in whole dollars; ``options`` are names in `OPTION_VALUES`."""

    category: str
    path: str
    noun: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_range: tuple[int, int]


# category > department: noun / attributes / options / prices
_KINDS = """
fashion > Clothing > Shirts: t-shirt / machine wash, short sleeve, crew neck, moisture wicking, cotton blend, classic fit, quick dry / color, size, fit / 9-30
fashion > Clothing > Shirts: dress shirt / long sleeve, button closure, easy iron, slim cut, stretch fabric, machine wash, spread collar / color, size, fit / 20-60
fashion > Clothing > Sweaters: cardigan / long sleeve, button closure, hand wash, soft knit, relaxed cut, wool blend, side pockets / color, size / 25-80
fashion > Clothing > Sweaters: hoodie / fleece lined, front pocket, drawstring hood, machine wash, long sleeve, heavy weight / color, size / 20-65
fashion > Clothing > Trousers: jeans / straight leg, stretch denim, button fly, machine wash, high waist, five pockets / color, size, fit / 25-90
fashion > Clothing > Trousers: leggings / high waist, tummy control, moisture wicking, squat proof, side pockets, four way stretch / color, size / 12-45
fashion > Clothing > Dresses: summer dress / short sleeve, floral print, knee length, button closure, hand wash, elastic waist / color, size / 18-70
fashion > Shoes > Sneakers: running shoes / rubber sole, arch support, breathable mesh, slip resistant, memory foam, lace up / color, shoe size / 35-140
fashion > Shoes > Sandals: slide sandals / open toe, ankle strap, rubber sole, arch support, water resistant, soft footbed / color, shoe size / 12-60
fashion > Shoes > Boots: ankle boots / side zipper, block heel, faux leather, rubber sole, water resistant, fleece lined / color, shoe size / 30-150
beauty > Skin Care > Face: face cream / fragrance free, cruelty free, hyaluronic acid, sensitive skin, anti aging, oil free, paraben free / volume / 8-60
beauty > Skin Care > Face: cleansing gel / sulfate free, oil free, dermatologist tested, cruelty free, green tea, sensitive skin / volume, scent / 6-30
beauty > Skin Care > Body: body lotion / shea butter, long lasting, paraben free, dry skin, fast absorbing, cruelty free / scent, volume / 7-28
beauty > Hair Care > Shampoo: shampoo / sulfate free, color safe, tea tree, hair growth, argan oil, dry scalp / scent, volume / 7-35
beauty > Hair Care > Styling: hair clips / non slip, double teeth, thick hair, strong hold, matte surface, light weight / color, pack / 5-18
beauty > Makeup > Lips: lip balm / bees wax, long lasting, sun protection, cruelty free, natural ingredients, high gloss / flavor, pack / 3-15
beauty > Makeup > Eyes: eyeliner / water proof, long lasting, smudge proof, fine tip, quick dry, cruelty free / color / 5-22
beauty > Oral Care > Toothpaste: toothpaste / fluoride free, fresh breath, teeth whitening, sensitive teeth, natural ingredients, enamel care / flavor, pack / 4-20
beauty > Tools > Bags: cosmetic bag / water resistant, easy clean, double zipper, travel size, hanging hook, clear window / color / 8-35
beauty > Fragrance > Perfume: eau de parfum / long lasting, alcohol free, travel size, floral notes, gift box, woody notes / scent, volume / 15-120
home > Bedding > Pillows: throw pillow / machine washable, super soft, double sided, hidden zipper, hypoallergenic fill, spot clean / color, dimensions / 9-40
home > Bedding > Blankets: fleece blanket / super soft, machine washable, fade resistant, light weight, reversible pattern, anti pilling / color, dimensions / 14-60
home > Furniture > Tables: coffee table / solid wood, easy assembly, storage shelf, space saving, metal legs, scratch resistant / finish, style / 60-400
home > Furniture > Chairs: office chair / height adjustable, lumbar support, easy assembly, breathable mesh, padded armrest, heavy duty / color, style / 70-350
home > Furniture > Shelves: bookshelf / wall mounted, easy assembly, space saving, engineered wood, anti tip, open design / finish, style / 30-200
home > Decor > Lighting: table lamp / touch control, dimmable light, usb port, fabric shade, eye friendly, energy saving / color, style / 18-90
home > Decor > Walls: wall mirror / shatter proof, easy install, solid frame, wall mounted, full length, beveled edge / finish, dimensions / 25-180
home > Kitchen > Cookware: frying pan / non stick, dishwasher safe, stainless steel, induction ready, oven safe, cool handle / color, dimensions / 15-85
home > Kitchen > Storage: food container / leak proof, bpa free, dishwasher safe, microwave safe, stackable design, airtight lid / color, pack / 8-45
home > Bath > Towels: bath towel / quick dry, highly absorbent, machine washable, fade resistant, hanging loop, turkish cotton / color, pack / 10-55
electronics > Phones > Cables: charging cable / fast charging, braided nylon, tangle free, data transfer, gold plated, reinforced joint / color, length / 5-25
electronics > Phones > Cases: phone case / shock proof, wireless charging, slim profile, raised edges, clear back, non slip / color / 8-40
electronics > Audio > Headphones: wireless headphones / noise cancelling, long battery, built in microphone, foldable design, deep bass, fast charging / color / 20-250
electronics > Audio > Speakers: bluetooth speaker / water proof, hands free, stereo sound, long battery, compact size, dust proof / color, style / 18-160
electronics > Storage > Drives: flash drive / high speed, plug and play, metal body, password lock, key ring, shock proof / capacity, case color / 7-60
electronics > Storage > Cards: memory card / high speed, water proof, high definition, adapter included, temperature proof, fast transfer / capacity, pack / 8-90
electronics > Computers > Mice: computer mouse / silent click, ergonomic grip, adjustable dpi, rechargeable battery, usb receiver, plug and play / color / 9-70
electronics > Computers > Keyboards: mechanical keyboard / hot swappable, back light, compact layout, spill resistant, quiet keys, usb c / case color, style / 30-180
electronics > Wearables > Watches: smart watch / heart rate, water proof, sleep tracking, long battery, touch screen, step counter / case color, color / 35-300
electronics > Power > Batteries: power bank / fast charging, high capacity, slim profile, led display, dual port, air travel / color, capacity / 15-80
grocery > Snacks > Nuts: roasted almonds / gluten free, low sodium, non gmo, dairy free, high protein, resealable bag / flavor, pack / 6-40
grocery > Snacks > Bars: granola bars / gluten free, whole grain, nut free, individually wrapped, high fiber, low sugar / flavor, pack / 5-30
grocery > Snacks > Chips: vegetable chips / baked not fried, gluten free, low calorie, no preservatives, sea salt, plant based / flavor, pack / 4-25
grocery > Drinks > Coffee: ground coffee / dark roast, fair trade, single origin, low acid, usda organic, small batch / flavor, weight / 8-50
grocery > Drinks > Tea: herbal tea / caffeine free, usda organic, individually wrapped, non gmo, sugar free, loose leaf / flavor, pack / 5-28
grocery > Baking > Mixes: pancake mix / whole grain, gluten free, high protein, just add water, low sugar, dairy free / flavor, weight / 5-30
grocery > Baking > Sweets: dark chocolate / dairy free, fair trade, sugar free, high cocoa, gluten free, gift box / flavor, pack / 4-35
grocery > Breakfast > Cereal: oat cereal / whole grain, high fiber, low sugar, non gmo, nut free, family size / flavor, weight / 4-22
grocery > Pantry > Spreads: peanut butter / no stir, high protein, low sodium, non gmo, palm oil free, crunchy texture / pack, weight / 5-25
grocery > Pantry > Sauces: pasta sauce / no sugar added, usda organic, slow cooked, gluten free, low sodium, glass jar / pack, style / 4-28
sports > Fitness > Mats: yoga mat / non slip, extra thick, carry strap, eco friendly, easy clean, double sided / color, length / 15-80
sports > Fitness > Weights: dumbbell set / rubber coated, anti roll, knurled grip, easy storage, cast iron, neoprene cover / color, weight / 20-160
sports > Fitness > Bands: resistance bands / natural latex, snap proof, door anchor, carry bag, color coded, latex free / color, pack / 8-40
sports > Outdoor > Bottles: water bottle / bpa free, leak proof, double wall, wide mouth, carry loop, sweat proof / color, volume / 10-45
sports > Outdoor > Bags: hiking backpack / water resistant, padded straps, rain cover, many pockets, light weight, hydration ready / color, size / 25-140
sports > Outdoor > Camping: camping lantern / battery powered, water resistant, dimmable light, hanging hook, foldable design, emergency red / color, pack / 10-60
sports > Cycling > Helmets: bike helmet / adjustable fit, air vents, removable visor, rear light, washable padding, light weight / color, size / 20-130
sports > Cycling > Lights: bike light / usb rechargeable, water proof, quick release, high lumen, side visibility, tool free / color, style / 9-55
sports > Swimming > Goggles: swim goggles / anti fog, uv protection, leak proof, soft silicone, wide view, adjustable strap / color, pack / 8-45
sports > Games > Balls: soccer ball / machine stitched, high visibility, water resistant, soft touch, official weight, needle included / color, size / 12-60
"""


def _parse(line: str) -> ProductKind:
    place, _, rest = line.partition(": ")
    category, department, shelf = place.split(" > ")
    noun, attributes, options, prices = rest.split(" / ")
    low, high = prices.split("-")
    title = f"{category.title()} › {department} › {shelf} › {noun.title()}"
    return ProductKind(
        category=category,
        path=title,
        noun=noun,
        attributes=tuple(attributes.split(", ")),
        options=tuple(options.split(", ")),
        price_range=(int(low), int(high)),
    )


PRODUCT_KINDS = tuple(_parse(line) for line in _KINDS.strip().splitlines())
