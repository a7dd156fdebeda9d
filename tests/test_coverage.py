"""Coverage of the papers: every sentence names a claim and a criterion that exist, or a reason."""

import pytest

from experiments import CLAIMS, __main__ as command, coverage
from experiments.records import RECORDS

CONTENTS = coverage.papers(CLAIMS)


def test_three_papers_are_covered_sentence_by_sentence():
    found = {paper: coverage.nodes(paper, of, CLAIMS) for paper, of in CONTENTS.items()}
    assert list(found) == ["demystifying_resnet", "noise_stability", "diracnets"]
    assert not [c for paper, of in found.items() for c in coverage.unnamed(paper, of, CLAIMS)]
    assert sum(map(len, found.values())) >= 250
    wanted = [node for of in found.values() for node in of if node.way == "forbidden"]
    assert not [node for node in wanted if not node.told.startswith(("data: ", "scale: "))]


def test_coverage_page_matches_the_records():
    page = coverage.coverage_page(CLAIMS, RECORDS)
    assert command.COVERAGE.read_text(encoding="utf-8") == page


GOOD = {"at": "Theorem 2", "says": "One.", "by": "figure_1: no two sets of positions"}


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({**GOOD, "by": "figure_0: no two"}, "claim: unknown name 'figure_0'"),
        ({**GOOD, "by": "table_1: loss"}, "claim: unknown name 'table_1'"),  # of another paper
        ({**GOOD, "by": "figure_1: no three"}, "no criterion of .*figure_1 begins with 'no three'"),
        ({**GOOD, "by": "figure_1"}, "no criterion of .*figure_1 begins with ''"),
        ({**GOOD, "open": "why"}, r"needs at, says and one of \('by'"),
        ({"at": "Theorem 2", "says": "One."}, r"needs at, says and one of \('by'"),
        ({**GOOD, "note": "a"}, "got .*'note'"),
    ],
)
def test_a_node_that_names_nothing_is_refused(entry, told):
    with pytest.raises(ValueError, match=f"coverage.toml, Theorem 2: 'One.'.*{told}"):
        coverage.nodes("demystifying_resnet", {"nodes": [entry]}, CLAIMS)


def test_a_claim_of_another_folder_is_named_by_its_id():
    entry = {**GOOD, "by": ["noise_stability/table_1: loss", "figure_1: no two sets"]}
    (node,) = coverage.nodes("demystifying_resnet", {"nodes": [entry]}, CLAIMS)
    assert node.claims == ("noise_stability/table_1", "demystifying_resnet/figure_1")
    assert node.told.startswith("noise_stability/table_1, ")


def test_a_sentence_is_counted_once():
    with pytest.raises(ValueError, match="'One.'.* occurs twice"):
        coverage.nodes("demystifying_resnet", {"nodes": [GOOD, GOOD]}, CLAIMS)
