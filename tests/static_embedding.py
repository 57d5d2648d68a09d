"""A tiny static embedding, made on the spot: each word a vector of its own, so that similar means: shares words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

TEXT = """
a an the is are was do does did i you we it my your what where when why how who which of in on off to from by at for
please tell me can could would there not no never and or with without about now here way best quickly simply capital
france spain city country reset change password email account card order return refund money deliver delivery late
open close turn light dark mode merge main develop branch into copy config backup cat dog bigger than get back
"""


def save_embedding(folder: Path, text: str = TEXT, dimensions: int = 64, seed: int = 7) -> Path:
    """Write the model's folder; the seed says which vectors the words get."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *sorted(set(text.split()))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = np.random.default_rng(seed).standard_normal((len(vocabulary), dimensions)).astype(np.float32)
    StaticModel(vectors, tokenizer, normalize=True).save_pretrained(folder)
    return folder
