"""Few cases in which all pairs of values meet, in the place of a product of many."""

import itertools
from collections import Counter


def all_pairs(*factors, unless=lambda *case: False):
    """Cases (one value of each factor) in which every two values of two factors meet.

    ``unless`` names cases that cannot be; pairs that only these have are left out. Greedy: the case
    with the most new pairs, among these the one whose values were taken least often.
    """
    pairs = {case: {*itertools.combinations(enumerate(case), 2)}
             for case in itertools.product(*map(list, factors)) if not unless(*case)}  # fmt: skip
    chosen, missing, taken = [], set().union(*pairs.values()), Counter()

    def worth(case):
        return len(pairs[case] & missing), -sum(taken[part] for part in enumerate(case))

    while missing:
        chosen.append(max(pairs, key=worth))
        missing -= pairs.pop(chosen[-1])
        taken.update(enumerate(chosen[-1]))
    return chosen
