"""The words of the generated catalogue: kinds of products, what they can be like, what one can choose."""

from __future__ import annotations

from dataclasses import dataclass

BRANDS = (
    "Almora Birchwell Calder Dunmore Eastvale Fenwick Galloway Harrow Innisfree Juniper Kestrel Larkin "
    "Maplecroft Norvell Oakhurst Pemberly Quillon Ravenna Silverton Tamarind Umbra Verity Westbourne "
    "Yarrow Zephyr Ashgrove Brightleaf Cloverdale Driftwood Elmhurst"
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


# Three lines each: category > department > shelf > kind (prices), attributes, options.
_KINDS = """
fashion > Clothing > Shirts > t-shirt (9-30)
  machine wash, short sleeve, crew neck, moisture wicking, cotton blend, classic fit, quick dry
  color, size, fit
fashion > Clothing > Shirts > dress shirt (20-60)
  long sleeve, button closure, easy iron, slim cut, stretch fabric, machine wash, spread collar
  color, size, fit
fashion > Clothing > Sweaters > cardigan (25-80)
  long sleeve, button closure, hand wash, soft knit, relaxed cut, wool blend, side pockets
  color, size
fashion > Clothing > Sweaters > hoodie (20-65)
  fleece lined, front pocket, drawstring hood, machine wash, long sleeve, heavy weight
  color, size
fashion > Clothing > Trousers > jeans (25-90)
  straight leg, stretch denim, button fly, machine wash, high waist, five pockets
  color, size, fit
fashion > Clothing > Trousers > leggings (12-45)
  high waist, tummy control, moisture wicking, squat proof, side pockets, four way stretch
  color, size
fashion > Clothing > Dresses > summer dress (18-70)
  short sleeve, floral print, knee length, button closure, hand wash, elastic waist
  color, size
fashion > Shoes > Sneakers > running shoes (35-140)
  rubber sole, arch support, breathable mesh, slip resistant, memory foam, lace up
  color, shoe size
fashion > Shoes > Sandals > slide sandals (12-60)
  open toe, ankle strap, rubber sole, arch support, water resistant, soft footbed
  color, shoe size
fashion > Shoes > Boots > ankle boots (30-150)
  side zipper, block heel, faux leather, rubber sole, water resistant, fleece lined
  color, shoe size
beauty > Skin Care > Face > face cream (8-60)
  fragrance free, cruelty free, hyaluronic acid, sensitive skin, anti aging, oil free, paraben free
  volume
beauty > Skin Care > Face > cleansing gel (6-30)
  sulfate free, oil free, dermatologist tested, cruelty free, green tea, sensitive skin
  volume, scent
beauty > Skin Care > Body > body lotion (7-28)
  shea butter, long lasting, paraben free, dry skin, fast absorbing, cruelty free
  scent, volume
beauty > Hair Care > Shampoo > shampoo (7-35)
  sulfate free, color safe, tea tree, hair growth, argan oil, dry scalp
  scent, volume
beauty > Hair Care > Styling > hair clips (5-18)
  non slip, double teeth, thick hair, strong hold, matte surface, light weight
  color, pack
beauty > Makeup > Lips > lip balm (3-15)
  bees wax, long lasting, sun protection, cruelty free, natural ingredients, high gloss
  flavor, pack
beauty > Makeup > Eyes > eyeliner (5-22)
  water proof, long lasting, smudge proof, fine tip, quick dry, cruelty free
  color
beauty > Oral Care > Toothpaste > toothpaste (4-20)
  fluoride free, fresh breath, teeth whitening, sensitive teeth, natural ingredients, enamel care
  flavor, pack
beauty > Tools > Bags > cosmetic bag (8-35)
  water resistant, easy clean, double zipper, travel size, hanging hook, clear window
  color
beauty > Fragrance > Perfume > eau de parfum (15-120)
  long lasting, alcohol free, travel size, floral notes, gift box, woody notes
  scent, volume
home > Bedding > Pillows > throw pillow (9-40)
  machine washable, super soft, double sided, hidden zipper, hypoallergenic fill, spot clean
  color, dimensions
home > Bedding > Blankets > fleece blanket (14-60)
  super soft, machine washable, fade resistant, light weight, reversible pattern, anti pilling
  color, dimensions
home > Furniture > Tables > coffee table (60-400)
  solid wood, easy assembly, storage shelf, space saving, metal legs, scratch resistant
  finish, style
home > Furniture > Chairs > office chair (70-350)
  height adjustable, lumbar support, easy assembly, breathable mesh, padded armrest, heavy duty
  color, style
home > Furniture > Shelves > bookshelf (30-200)
  wall mounted, easy assembly, space saving, engineered wood, anti tip, open design
  finish, style
home > Decor > Lighting > table lamp (18-90)
  touch control, dimmable light, usb port, fabric shade, eye friendly, energy saving
  color, style
home > Decor > Walls > wall mirror (25-180)
  shatter proof, easy install, solid frame, wall mounted, full length, beveled edge
  finish, dimensions
home > Kitchen > Cookware > frying pan (15-85)
  non stick, dishwasher safe, stainless steel, induction ready, oven safe, cool handle
  color, dimensions
home > Kitchen > Storage > food container (8-45)
  leak proof, bpa free, dishwasher safe, microwave safe, stackable design, airtight lid
  color, pack
home > Bath > Towels > bath towel (10-55)
  quick dry, highly absorbent, machine washable, fade resistant, hanging loop, turkish cotton
  color, pack
electronics > Phones > Cables > charging cable (5-25)
  fast charging, braided nylon, tangle free, data transfer, gold plated, reinforced joint
  color, length
electronics > Phones > Cases > phone case (8-40)
  shock proof, wireless charging, slim profile, raised edges, clear back, non slip
  color
electronics > Audio > Headphones > wireless headphones (20-250)
  noise cancelling, long battery, built in microphone, foldable design, deep bass, fast charging
  color
electronics > Audio > Speakers > bluetooth speaker (18-160)
  water proof, hands free, stereo sound, long battery, compact size, dust proof
  color, style
electronics > Storage > Drives > flash drive (7-60)
  high speed, plug and play, metal body, password lock, key ring, shock proof
  capacity, case color
electronics > Storage > Cards > memory card (8-90)
  high speed, water proof, high definition, adapter included, temperature proof, fast transfer
  capacity, pack
electronics > Computers > Mice > computer mouse (9-70)
  silent click, ergonomic grip, adjustable dpi, rechargeable battery, usb receiver, plug and play
  color
electronics > Computers > Keyboards > mechanical keyboard (30-180)
  hot swappable, back light, compact layout, spill resistant, quiet keys, usb c
  case color, style
electronics > Wearables > Watches > smart watch (35-300)
  heart rate, water proof, sleep tracking, long battery, touch screen, step counter
  case color, color
electronics > Power > Batteries > power bank (15-80)
  fast charging, high capacity, slim profile, led display, dual port, air travel
  color, capacity
grocery > Snacks > Nuts > roasted almonds (6-40)
  gluten free, low sodium, non gmo, dairy free, high protein, resealable bag
  flavor, pack
grocery > Snacks > Bars > granola bars (5-30)
  gluten free, whole grain, nut free, individually wrapped, high fiber, low sugar
  flavor, pack
grocery > Snacks > Chips > vegetable chips (4-25)
  baked not fried, gluten free, low calorie, no preservatives, sea salt, plant based
  flavor, pack
grocery > Drinks > Coffee > ground coffee (8-50)
  dark roast, fair trade, single origin, low acid, usda organic, small batch
  flavor, weight
grocery > Drinks > Tea > herbal tea (5-28)
  caffeine free, usda organic, individually wrapped, non gmo, sugar free, loose leaf
  flavor, pack
grocery > Baking > Mixes > pancake mix (5-30)
  whole grain, gluten free, high protein, just add water, low sugar, dairy free
  flavor, weight
grocery > Baking > Sweets > dark chocolate (4-35)
  dairy free, fair trade, sugar free, high cocoa, gluten free, gift box
  flavor, pack
grocery > Breakfast > Cereal > oat cereal (4-22)
  whole grain, high fiber, low sugar, non gmo, nut free, family size
  flavor, weight
grocery > Pantry > Spreads > peanut butter (5-25)
  no stir, high protein, low sodium, non gmo, palm oil free, crunchy texture
  pack, weight
grocery > Pantry > Sauces > pasta sauce (4-28)
  no sugar added, usda organic, slow cooked, gluten free, low sodium, glass jar
  pack, style
sports > Fitness > Mats > yoga mat (15-80)
  non slip, extra thick, carry strap, eco friendly, easy clean, double sided
  color, length
sports > Fitness > Weights > dumbbell set (20-160)
  rubber coated, anti roll, knurled grip, easy storage, cast iron, neoprene cover
  color, weight
sports > Fitness > Bands > resistance bands (8-40)
  natural latex, snap proof, door anchor, carry bag, color coded, latex free
  color, pack
sports > Outdoor > Bottles > water bottle (10-45)
  bpa free, leak proof, double wall, wide mouth, carry loop, sweat proof
  color, volume
sports > Outdoor > Bags > hiking backpack (25-140)
  water resistant, padded straps, rain cover, many pockets, light weight, hydration ready
  color, size
sports > Outdoor > Camping > camping lantern (10-60)
  battery powered, water resistant, dimmable light, hanging hook, foldable design, emergency red
  color, pack
sports > Cycling > Helmets > bike helmet (20-130)
  adjustable fit, air vents, removable visor, rear light, washable padding, light weight
  color, size
sports > Cycling > Lights > bike light (9-55)
  usb rechargeable, water proof, quick release, high lumen, side visibility, tool free
  color, style
sports > Swimming > Goggles > swim goggles (8-45)
  anti fog, uv protection, leak proof, soft silicone, wide view, adjustable strap
  color, pack
sports > Games > Balls > soccer ball (12-60)
  machine stitched, high visibility, water resistant, soft touch, official weight, needle included
  color, size
"""


def _parse(heading: str, attributes: str, options: str) -> ProductKind:
    place, _, prices = heading.removesuffix(")").partition(" (")
    category, department, shelf, noun = place.split(" > ")
    low, high = prices.split("-")
    return ProductKind(
        category=category,
        path=f"{category.title()} › {department} › {shelf} › {noun.title()}",
        noun=noun,
        attributes=tuple(attributes.strip().split(", ")),
        options=tuple(options.strip().split(", ")),
        price_range=(int(low), int(high)),
    )


_LINES = _KINDS.strip().splitlines()
PRODUCT_KINDS = tuple(_parse(*_LINES[i : i + 3]) for i in range(0, len(_LINES), 3))
