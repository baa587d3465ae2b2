"""The numbers beside the pictures, against scikit-learn or by hand."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from embedkit import evaluate, search


@pytest.fixture(scope="module")
def data():
    """Give train vectors, labels, test vectors, labels: three classes that overlap."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 150)
    vectors = 1.5 * np.eye(3, 6)[labels] + generator.normal(size=(150, 6))
    return vectors[:100], labels[:100], vectors[100:], labels[100:]


@pytest.mark.parametrize("k", [1, 5])
def test_knn_accuracy_by_hand(data, k):
    train, train_labels, test, test_labels = data
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train, test)]
    near = np.argsort(-(unit[1] @ unit[0].T), axis=1)[:, :k]
    votes = [np.bincount(train_labels[row], minlength=3).argmax() for row in near]
    by_hand = np.mean(np.array(votes) == test_labels)
    assert evaluate.knn_accuracy(*data, k=k) == pytest.approx(by_hand)
    assert 0.4 < by_hand < 1


def test_knn_measures_by_the_cosine(data):
    train, train_labels, test, test_labels = data
    longer = test * np.linspace(0.01, 100, len(test))[:, None]
    assert evaluate.knn_accuracy(*data) == evaluate.knn_accuracy(
        train, train_labels, longer, test_labels
    )


def test_linear_probe_is_a_logistic_regression(data):
    train, train_labels, test, test_labels = data
    scores = [
        LogisticRegression(C=c, max_iter=2000).fit(train, train_labels).score(test, test_labels)
        for c in (1e-3, 1e-2, 1e-1, 1.0)
    ]
    probe = evaluate.linear_probe(*data)
    assert min(scores) - 0.05 <= probe <= max(scores) + 0.05
    assert probe > evaluate.majority_baseline(train_labels, test_labels) + 0.2


def test_linear_probe_does_not_depend_on_the_scale(data):
    train, train_labels, test, test_labels = data
    large = evaluate.linear_probe(1000 * train, train_labels, 1000 * test, test_labels)
    assert large == pytest.approx(evaluate.linear_probe(*data), abs=0.03)


def test_noise_is_worth_the_majority(data):
    generator = np.random.default_rng(1)
    noise = generator.normal(size=(600, 6))
    labels = generator.integers(0, 2, 600)
    score = evaluate.linear_probe(noise[:300], labels[:300], noise[300:], labels[300:])
    assert score == pytest.approx(0.5, abs=0.1)


def test_majority_baseline_by_hand():
    assert evaluate.majority_baseline([2, 2, 0], [2, 0, 0, 1]) == 0.25
    assert evaluate.majority_baseline(["a", "b", "b"], ["b", "b"]) == 1.0
    assert evaluate.majority_baseline([0, 0, 1], [1]) == 0.0


def test_labels_may_be_strings_or_columns(data):
    train, train_labels, test, test_labels = data
    named = [np.array(["x", "y", "z"])[labels].tolist() for labels in (train_labels, test_labels)]
    for score in (evaluate.knn_accuracy, evaluate.linear_probe):
        assert score(train, named[0], test, named[1]) == score(*data)
    assert evaluate.silhouette(train, named[0]) == evaluate.silhouette(train, train_labels)


@pytest.mark.slow
def test_sparse_input(data):
    train, train_labels, test, test_labels = data
    train, test = np.maximum(train, 0), np.maximum(test, 0)
    sparse = csr_matrix(train), train_labels, csr_matrix(test), test_labels
    dense = train, train_labels, test, test_labels
    for score in (evaluate.knn_accuracy, evaluate.linear_probe):
        assert score(*sparse) == pytest.approx(score(*dense), abs=0.021)


def test_silhouette_is_scikit_learns_by_the_cosine(data):
    train, labels, _, _ = data
    expected = metrics.silhouette_score(train, labels, metric="cosine")
    assert evaluate.silhouette(train, labels) == pytest.approx(expected)


def test_trustworthiness_is_scikit_learns_by_the_cosine(data):
    train = data[0]
    for points in (train[:, :2], np.random.default_rng(0).normal(size=(100, 2))):
        expected = trustworthiness(train, points, n_neighbors=7, metric="cosine")
        assert evaluate.trustworthiness(train, points, k=7) == pytest.approx(expected)
    unit = train / np.linalg.norm(train, axis=1, keepdims=True)
    assert evaluate.trustworthiness(train, unit) == pytest.approx(1.0)


def test_trustworthiness_of_a_sample_is_near_that_of_all_rows(monkeypatch):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(900, 6))
    points = vectors[:, :2] + generator.normal(size=(900, 2))
    exact = evaluate.trustworthiness(vectors, points)
    assert 0.5 < exact < 0.9
    monkeypatch.setattr(evaluate, "CELLS", 900 * 7)  # several blocks
    assert evaluate.trustworthiness(vectors, points, sample=None) == pytest.approx(exact)
    some = evaluate.trustworthiness(vectors, points, sample=300)
    assert some != exact and some == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("cells", [2**24, 300])
def test_nearest_is_scikit_learns(data, metric, cells, monkeypatch):
    monkeypatch.setattr(search, "CELLS", cells)
    vectors, _, queries, _ = data
    vectors = vectors + (100 if metric == "euclidean" else 0)
    queries = queries + (100 if metric == "euclidean" else 0)
    exact = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(vectors)
    for given in (queries, None):
        expected, expected_rows = exact.kneighbors(given)
        rows, distances = evaluate.nearest(vectors, given, k=7, metric=metric)
        assert rows.dtype == np.intp and distances.dtype == np.float32
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_nearest_among_equals_are_the_first_rows():
    vectors = np.array([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 4 + [[0.0, 0.0]])
    rows, distances = evaluate.nearest(vectors, [[2.0, 0.0]], k=8)
    assert rows.tolist() == [[3, 4, 5, 6, 0, 1, 2, 7]]
    assert distances.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    twins, _ = evaluate.nearest(vectors[:3], k=2)
    assert twins.tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.slow
def test_nearest_needs_little_memory():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(20_000, 16)).astype(np.float32)
    tracemalloc.start()
    evaluate.nearest(vectors, k=10)  # all pairs would take 1.6 GB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_predictions_are_those_that_the_accuracy_counts(data):
    train, train_labels, test, test_labels = data
    predicted = evaluate.knn_predict(train, train_labels, test, k=3)
    assert np.mean(predicted == test_labels) == evaluate.knn_accuracy(*data, k=3)
    names = np.array(["x", "y", "z"])[train_labels]
    assert set(evaluate.knn_predict(csr_matrix(train), names, csr_matrix(test))) == {"x", "y", "z"}


def test_retrieval_by_hand():
    found = [[3, 5, 8], [1, 2, 0]]
    relevant = [[5, 9, 8], [7]]
    scores = evaluate.retrieval(found, relevant, k=3)
    assert scores["recall"] == pytest.approx((2 / 3 + 0) / 2)
    gain = (1 / np.log2(3) + 1 / np.log2(4)) / (1 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4))
    assert scores["ndcg"] == pytest.approx(gain / 2)
    assert evaluate.retrieval(found, relevant, k=1) == {"recall": 0, "ndcg": 0}
    assert evaluate.retrieval([[4, 2, 6]], [[2, 4]], k=2) == {"recall": 1, "ndcg": 1}
    many = evaluate.retrieval([[4]], [[4, 1, 2]], k=1)  # more relevant ones than were asked for
    assert many == {"recall": pytest.approx(1 / 3), "ndcg": 1}


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate.nearest(np.eye(3), np.eye(4)), "vectors has 3 dimensions and queries"),
        (lambda: evaluate.nearest(np.eye(3), k=3), r"nearest\(k=3\): .* from 1 to 2"),
        (lambda: evaluate.nearest(np.eye(3), metric="l2"), "choose from cosine, euclidean"),
        (lambda: evaluate.nearest(csr_matrix(np.eye(3))), "Sparse data was passed"),
        (lambda: evaluate.nearest(np.eye(3), [[np.nan] * 3], k=1), "queries: 1 of 1 rows hold NaN"),
        (lambda: evaluate.retrieval([[1, 2]], [[1]]), r"retrieval\(k=10\).* from 1 to 2"),
        (lambda: evaluate.retrieval([[1, 2]], [[]], k=2), "at least one row in it"),
        (lambda: evaluate.retrieval([[1, 2]], [[1], [2]], k=2), "1 queries and 2 lists"),
        (lambda: evaluate.retrieval([[1, 1]], [[1]], k=2), "a row twice"),
        (lambda: evaluate.retrieval([[0.5, 1.7]], [[1]], k=2), "holds fractions"),
        (lambda: evaluate.trustworthiness(np.eye(9), np.eye(9)[:, :2], k=2, sample=0), "sample=0"),
        (lambda: evaluate.knn_predict(np.eye(3), [1, 2, 3], np.eye(2), k=1), "the same encoder"),
    ],
)  # fmt: skip
def test_searches_that_cannot_be_made(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_number_is_a_plain_float(data):
    train, labels, _, _ = data
    numbers = [
        evaluate.knn_accuracy(*data),
        evaluate.linear_probe(*data),
        evaluate.majority_baseline(labels, labels),
        evaluate.silhouette(train, labels),
        evaluate.trustworthiness(train, train[:, :2]),
        *evaluate.drift(train[:50], train[50:]).values(),
    ]
    assert {type(number) for number in numbers} == {float}


def test_drift_of_the_same_source_is_chance():
    generator = np.random.default_rng(0)
    p_values = [
        evaluate.drift(generator.normal(size=(60, 8)), generator.normal(size=(40, 8)))["p_value"]
        for _ in range(20)
    ]
    assert np.median(p_values) > 0.2
    assert np.mean(np.array(p_values) <= 0.05) <= 0.2


def test_drift_of_a_shifted_source_is_none():
    generator = np.random.default_rng(0)
    reference, production = generator.normal(size=(60, 8)), generator.normal(size=(40, 8)) + 0.7
    result = evaluate.drift(reference, production)
    assert result["p_value"] <= 0.01
    by_hand = np.linalg.norm(reference.mean(0) - production.mean(0))
    assert result["distance"] == pytest.approx(by_hand)
    assert evaluate.drift(reference, production) == result
    assert evaluate.drift(production, reference)["distance"] == pytest.approx(by_hand)


def test_no_drift_between_equal_rows():
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert evaluate.drift(rows, rows) == {"distance": pytest.approx(0, abs=1e-9), "p_value": 1.0}
    same = np.full((10, 3), 0.1)
    assert evaluate.drift(same, same)["p_value"] == 1.0


def test_the_smallest_p_value_is_that_of_the_shuffles():
    far = np.random.default_rng(0).normal(size=(30, 3))
    assert evaluate.drift(far, far + 9, permutations=99)["p_value"] == 0.01


def test_sparse_vectors_are_checked_too():
    broken = csr_matrix([[1.0, 0.0], [np.nan, 1.0]])
    with pytest.raises(ValueError, match="NaN"):
        evaluate.knn_accuracy(broken, ["a", "b"], broken, ["a", "b"], k=1)
