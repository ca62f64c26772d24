"""The table of measures, from which files, reports and comparisons derive theirs."""

from loramix.metrics.measures import COMBINED, MEASURES, SCORE_FILES


def test_the_combined_score_is_labelled_with_all_that_it_is_the_mean_of() -> None:
    assert COMBINED == ("rougeL", "bertscore", "exact_match", "bleu", "chrf", "probability")
    label = MEASURES["combined"].label
    assert all(MEASURES[name].label in label for name in COMBINED)


def test_the_columns_of_a_runs_tables_are_measures() -> None:
    columns = {}
    for table in SCORE_FILES:
        columns[table.file] = [measure.column for measure in table.measures]
    assert columns == {
        "rouge.csv": ["rouge1", "rouge2", "rougeL"],
        "bertscore.csv": ["F1"],
        "accuracy.csv": ["exact match", "BLEU", "chrF"],
        "syllables.csv": [],
        "test_loss.csv": [],
    }
