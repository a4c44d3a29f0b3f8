"""Plain torch: a logistic regression over embeddings of one weight, with Adagrad; dense gradients or sparse ones."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


def scores(sparse: bool, ids: np.ndarray, labels: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Probabilities, part by part, each before its labels were learned."""
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # as they are; said, so that torch does not warn
    tables = [nn.Embedding(int(column.max()) + 1, 1, sparse=sparse) for column in ids.T]
    for table in tables:
        nn.init.zeros_(table.weight)
    bias = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adagrad([*(table.weight for table in tables), bias], lr=0.2, initial_accumulator_value=0.01)
    for start in range(0, len(ids), rows):
        part = torch.from_numpy(ids[start : start + rows])
        logits = bias + sum(table(part[:, i]) for i, table in enumerate(tables)).squeeze(1)
        yield torch.sigmoid(logits.detach()).numpy()
        wanted = torch.from_numpy(labels[start : start + rows])
        # Of the summed loss, as ours steps its rows: what an id learns does not depend on the batch's size.
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
