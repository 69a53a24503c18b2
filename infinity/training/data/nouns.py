"""English number and articles for concept names."""

import re

_POSTMODIFIER = re.compile(
    r"(?<=^person) |(?<=^face) |(?<=^man) (?=\w+ing$)|(?<=^woman) (?=\w+ing$)|"
    r" (?=(with|without|of|in|on|behind|over|at|fluttering|pointing|showing|facing|tilted)\b)"
)
_SINGULAR_IN_S = frozenset(
    [
        "abacus", "bus", "cactus", "claus", "compass", "hibiscus", "hippopotamus", "lotus",
        "minibus", "octopus", "rhinoceros", "trolleybus",
    ]
)  # fmt: skip
_MASS = frozenset(
    [
        "american football", "bacon", "badminton", "bowling", "bread", "breast-feeding",
        "broccoli", "butter", "camping", "canned food", "chart decreasing", "chart increasing",
        "chart increasing with yen", "construction", "cooked rice", "cooking", "coral",
        "curry rice", "dizzy", "dna", "falafel", "field hockey", "fire", "flatbread", "fog",
        "foggy", "fondue", "garlic", "ginger root", "green salad", "head shaking horizontally",
        "head shaking vertically", "high voltage", "horse racing", "hourglass done",
        "hourglass not done", "ice", "ice hockey", "kaaba", "lacrosse", "leafy green", "locked",
        "locked with key", "locked with pen", "luggage", "milky way", "money with wings",
        "mount fuji", "mrs. claus", "muted speaker", "mx claus", "nail polish", "oden",
        "palms up together", "performing arts", "ping pong", "popcorn", "pouring liquid",
        "rolling on the floor laughing", "rugby football", "sake", "salt", "santa claus",
        "shaved ice", "soap", "soft ice cream", "spaghetti", "star-struck", "statue of liberty",
        "stuffed flatbread", "sushi", "tennis", "thread", "thumbs down", "thumbs up",
        "tokyo tower", "unlocked", "wood", "yarn",
    ]
)  # fmt: skip
_UNCOUNTED = frozenset(
    [
        "airplane arrival", "airplane departure", "backhand index pointing down",
        "backhand index pointing left", "backhand index pointing right",
        "backhand index pointing up", "collision", "desert", "exploding head",
        "flower playing cards", "index pointing at the viewer", "index pointing up", "landslide",
        "moon viewing ceremony", "people wrestling", "person feeding baby", "pine decoration",
        "raised back of hand", "sad but relieved face", "sport utility vehicle",
        "upside-down face",
    ]
)  # fmt: skip
_IRREGULAR = {
    "bison": "bison",
    "blowfish": "blowfish",
    "buffalo": "buffaloes",
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "elf": "elves",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "jellyfish": "jellyfish",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "mango": "mangoes",
    "merperson": "merpeople",
    "moose": "moose",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "shrimp": "shrimp",
    "snowman": "snowmen",
    "squid": "squid",
    "superhero": "superheroes",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
    "wolf": "wolves",
    "woman": "women",
}


def with_article(name: str) -> str:
    """``name`` after ``a`` or ``an``, or alone when it is a plural or a mass noun."""
    if name in _MASS or _is_plural(name):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("eu", "uni", "one"))
    return f"{'an' if vowel or name == 'x-ray' else 'a'} {name}"


def is_countable(name: str) -> bool:
    """Whether a number and the plural of ``name`` say copies of one drawing."""
    return not (name in _MASS or name in _UNCOUNTED or _is_plural(name) or " and " in name)


def plural(name: str) -> str:
    """The plural of a countable name: ``face with tears`` becomes ``faces with tears``."""
    head, rest = _split(name)
    stem, space, last = head.rpartition(" ")
    return f"{stem}{space}{_plural_word(last)}{rest}"


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def _split(name: str) -> tuple[str, str]:
    match = _POSTMODIFIER.search(name)
    return (name[: match.start()], name[match.start() :]) if match else (name, "")


def _is_plural(name: str) -> bool:
    last = _split(name)[0].rpartition(" ")[2]
    if last in _SINGULAR_IN_S or last.endswith("ss"):
        return False
    return last.endswith("s") or last in {"people", "men", "women"}
