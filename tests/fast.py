"""The part of the tests for every save: ``pytest --fast``, or ``make test-fast``.

Chosen by measured seconds: files whose tests start processes or take minutes are left out, so are
single tests of a second or more, and of a test with many cases the first two run.
"""

from collections import Counter

CASES = 2
FILES = {
    "test_benchmarks", "test_bootstrap", "test_claims", "test_cli_train", "test_devices",
    "test_differential", "test_digest", "test_docs", "test_eigen_dtype", "test_fake_cuda",
    "test_figures", "test_history", "test_lease", "test_notebooks", "test_parallel", "test_parts",
    "test_process_group", "test_readme", "test_report", "test_sweep", "test_training_on_cuda",
    "test_trainings", "test_trials",
}  # fmt: skip
FOLDERS = {"reliability"}
TESTS = {
    "test_a_killed_run_on_a_net_continues_bit_for_bit", "test_a_process_of_its_own",
    "test_certificate_is_right_as_often_as_it_says",
    "test_class_priors_bound_the_condition_number_for_all_signs",
    "test_coarse_quadrature_widens_the_index", "test_columns_go_on_after_a_kill",
    "test_condition_number_of_the_theorem_and_least_loss_of_a_linear_map",
    "test_demo_has_no_prediction_for_xavier_and_saves_a_figure",
    "test_demo_predicts_what_it_measures_at_zero", "test_demo_prints_where_its_files_are",
    "test_demo_shows_a_condition_number_that_depth_leaves_alone",
    "test_every_flipped_bit_of_a_manifest_is_noticed",
    "test_every_setting_of_precision_comes_back",
    "test_folded_nets_are_the_authors_function_and_come_back_bit_for_bit",
    "test_nets_are_the_authors_function_and_come_back_bit_for_bit",
    "test_files_of_the_authors_and_losses_of_users_load_no_compiler",
    "test_imagenet_nets_train_on_a_folder_and_are_evaluated",
    "test_inside_a_room_no_imports_go_round",
    "test_interval_of_the_median_difference_covers_it",
    "test_intervals_are_as_wide_as_their_confidence", "test_intervals_cover_the_exact_value",
    "test_intervals_have_their_coverage", "test_intervals_hold_the_truth",
    "test_mean_over_directions_is_the_mean", "test_mnist_is_complete",
    "test_no_source_runs_what_it_reads", "test_predicted_escape_is_measured",
    "test_steps_of_training",
    "test_the_table_holds_the_official_checksums",
    "test_too_large_a_net_is_refused_before_the_work",
    "test_what_is_slow_to_import_is_imported_late", "test_whitened_data_have_the_promised_form",
}  # fmt: skip


def is_left_out(path):
    return path.stem in FILES or path.name in FOLDERS


def select(items):
    """Items that run, and those that do not."""
    seen, kept, left = Counter(), [], []
    for item in items:
        function = item.nodeid.partition("[")[0]
        seen[function] += 1
        slow = function.rpartition("::")[2] in TESTS or seen[function] > CASES
        (left if slow else kept).append(item)
    return kept, left
