"""What the example's tests share."""

import pytest


@pytest.fixture(scope="session")
def words():
    """The tokenizer that the training learns; it takes some seconds."""
    torch = pytest.importorskip("torch", reason="the extra cpu is not installed: nothing can be trained")
    torch.set_num_threads(1)  # so small a model is slower on several
    from examples.train_model import learn_words

    return learn_words()
