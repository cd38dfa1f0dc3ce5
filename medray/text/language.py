"""Guesses the language of a text from its most frequent short words. Texts shorter than a sentence
stay unknown."""

import re
from collections import Counter

UNKNOWN = ""  # too few words, or none of the languages below
_WORD = re.compile(r"[^\W\d_]+")
_LEAST_WORDS = 6
_LEAST_SHARE = 0.08  # of a text's words; prose in these languages has 0.2 to 0.5
_STOP_WORDS = {
    "en": (
        "the of and in to a is was were with for that by as on are from at this be an or which not "
        "we these has have it after than"
    ),
    "de": (
        "der die das und in den von zu mit ist des im für auf dem nicht ein eine als auch es an "
        "werden wurde bei oder nach sind einer wird sich"
    ),
    "fr": (
        "le la les de des du et en un une est dans que qui pour par sur au aux avec pas plus ce "
        "cette sont été ou chez ont être a"
    ),
    "es": (
        "el la los las de del y en un una es que por con para se no al lo como más fue fueron son "
        "su entre sin o este esta"
    ),
    "it": (
        "il lo la i gli le di del della dei e in un una è che per con non si da al alla sono nel "
        "nella come più stato o dei"
    ),
    "pt": (
        "o a os as de do da dos das e em um uma é que por com para se não no na nos ao à como mais "
        "foi foram são entre ou"
    ),
    "nl": (
        "de het een van en in is dat op te met voor niet zijn was werd bij door als aan ook naar "
        "of uit worden werden er die tot"
    ),
    "pl": (
        "i w na z do nie się jest to że o po od dla przez przy jak oraz są był była było lub ich "
        "ale tego u pacjenta za"
    ),
    "sv": (
        "och i att det som en på är av för med den till inte om ett var har vid eller från de kan "
        "men efter ska hos under"
    ),
    "tr": (
        "ve bir bu ile için olan da de olarak en çok daha gibi kadar ise sonra veya hasta ne mi "
        "değil her göre olduğu"
    ),
}
_WORDS = {name: frozenset(words.split()) for name, words in _STOP_WORDS.items()}
# Scripts that belong to one language, or nearly so: enough to tell it from the training data's.
_SCRIPTS = (
    ("ru", re.compile(r"[Ѐ-ӿ]")),
    ("el", re.compile(r"[Ͱ-Ͽ]")),
    ("ar", re.compile(r"[؀-ۿ]")),
    ("he", re.compile(r"[֐-׿]")),
    ("ja", re.compile(r"[぀-ヿ]")),
    ("ko", re.compile(r"[가-힯]")),
    ("zh", re.compile(r"[一-鿿]")),
)


def guess(text: str) -> str:
    """Return a code such as `en`, or UNKNOWN."""
    letters = sum(map(str.isalpha, text))
    for name, script in _SCRIPTS:
        if letters and len(script.findall(text)) > letters / 3:
            return name
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < _LEAST_WORDS:
        return UNKNOWN
    counts = Counter(words)
    shares = {
        name: sum(counts[word] for word in stop & counts.keys()) / len(words)
        for name, stop in _WORDS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= _LEAST_SHARE else UNKNOWN
