"""Named seeds.

Every random number comes from a generator that is seeded by a name and the seeds above it, such as (trial seed,
'order', epoch). No number depends on how many were drawn before, so an interrupted trial resumes exactly.
"""

import hashlib


def named_seed(*names: int | str) -> int:
    """Return a seed (0 to 2**63 - 1) that depends on the names alone."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def repeat_seed(study_seed: int, repeat: int) -> int:
    """Return the seed of a repeat of a study, from 0, whose random numbers are those of a study with this seed."""
    return study_seed if repeat == 0 else named_seed(study_seed, "repeat", repeat)
