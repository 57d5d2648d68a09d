"""What the example's tests share."""

import pytest


@pytest.fixture(scope="session")
def words():
    """The tokenizer that the training learns; it takes some seconds."""
    pytest.importorskip("torch", reason="the extra cpu is not installed: nothing can be trained")
    from examples.train_model import learn_words

    return learn_words()
