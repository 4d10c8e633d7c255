import numpy as np
import pyarrow as pa
import torch

from refocus.data.batches import TileBatch
from refocus.training.passes import PassPosition, without

CPU = torch.device("cpu")


def batch(*indices: int) -> TileBatch:
    nothing = torch.empty(len(indices), 1, 1, 1)
    numbers = torch.zeros(len(indices))
    return TileBatch(nothing, nothing, numbers.bool(), numbers, numbers, torch.tensor(indices), numbers.long())


def test_a_position_names_the_tiles_that_were_had_and_survives_a_checkpoint() -> None:
    position = PassPosition()
    position.finish()
    for indices in ((5, 7), (2**62, 1)):
        position.add(batch(*indices))
    position.gather(rank=0, world_size=1, device=CPU)
    position.gather(rank=0, world_size=1, device=CPU)  # nothing new: nothing is counted twice
    again = PassPosition()
    again.load_state_dict(position.state_dict())
    assert again.number == 1
    assert again.had.tolist() == [5, 7, 2**62, 1]
    again.finish()
    assert (again.number, len(again.had)) == (2, 0)


def test_what_is_left_of_a_pass_is_what_was_not_had() -> None:
    rows = pa.table({"index": pa.array([1, 5, 2**62, 9]), "pixels": [b"a", b"b", b"c", b"d"]})
    left = without(rows, np.array([2**62, 5], np.int64))
    assert left["index"].to_pylist() == [1, 9]
    assert left["pixels"].to_pylist() == [b"a", b"d"]
    assert without(rows, np.array([], np.int64)).num_rows == 4
    assert without(rows, np.array([1, 5, 2**62, 9])).num_rows == 0
