"""The names of splits, as people write them in folders and tables."""

import re
from functools import cache

SPLIT_WORDS = {
    "train": "train|training|trains|trainings",
    "val": "val|vals|valid|validation|validations|dev|develop|development",
    "test": "test|testing|tests|testings",
}
# Words that say nothing about the split or the class: seg_train, train_set, images, Training Data, val2017.
FILLER = "(?:segmented|seg|data|dataset|sets?|images?|imgs?|pictures?|pics?|photos?|split|files?|folders?|[12][0-9]{3})"


@cache  # a table asks for every row
def split_of(name: str) -> str | None:
    """Return the split that a name stands for: 'train', 'val', 'test', or None for a class."""
    letters = re.sub("[^a-z0-9]", "", name.lower())
    for split, words in SPLIT_WORDS.items():
        if re.fullmatch(f"{FILLER}*(?:{words}){FILLER}*", letters):
            return split
    return None
