"""scikit-learn's own checks of an estimator."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from flip_ctr import FlipClassifier

# check -> why it fails
FAILS = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 is in one batch, and two rows are in two",
}


# few epochs, and as many as its checks of the accuracy on 300 rows need
@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([FlipClassifier(num_train_epochs=6)], expected_failed_checks=lambda estimator: FAILS)
def test_check(estimator, check):
    check(estimator)
