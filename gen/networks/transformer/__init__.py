"""The transformer (Vaswani et al. 2017): a decoder, an encoder, or both, made of the same blocks.

The last letters of an array's name are its axes: B examples, T positions that are computed, S positions that are attended to,
N heads of queries, K heads of keys and values, H channels of a head, D channels of the model, F hidden units, V vocabulary,
A axes of a grid, J tokens of a position of a grid.
The parameters of all layers are stacked on a leading axis L.
"""

from gen.networks.transformer.architecture import RULES, Architecture
from gen.networks.transformer.cache import Cache, empty_cache, grow_cache
from gen.networks.transformer.decoding import begin_decoding
from gen.networks.transformer.inner import InnerHead
from gen.networks.transformer.transformer import Transformer, unstack_layers

__all__ = [
    "RULES",
    "Architecture",
    "Cache",
    "InnerHead",
    "Transformer",
    "begin_decoding",
    "empty_cache",
    "grow_cache",
    "unstack_layers",
]
