"""Latents -> answers to the questions one asks of them; every function takes and gives labelled data.

    pool, on_map                             one state a time; tokens laid out on a map
    principal_components, token_components   which directions vary, and where
    umap                                     a picture of who is near whom
    analogs, followed                        which days resemble this one, and what came after them
    regimes, transitions, composites         which states recur, which follows which, how they look
    surprise                                 when and where the model is surprised
    attention, receptive_field               whom a token attends to; what its latent answers to
    canonical_correlation, probe_map         how latents relate to indices and to fields
    similarity, rank, intrinsic_dimension    two models side by side; how many directions there are

What arrives: latents from `sciJEPA.embed`, pooled or not. This module only gathers the names; each topic is a module of
its own. We decided against a class that holds latents: xarray does.
"""

from sciJEPA.explore.analogs import analogs, followed
from sciJEPA.explore.attention import attention, receptive_field
from sciJEPA.explore.components import principal_components, token_components, umap
from sciJEPA.explore.dimension import intrinsic_dimension, rank
from sciJEPA.explore.fields import composites
from sciJEPA.explore.regimes import regimes, transitions
from sciJEPA.explore.relations import canonical_correlation, probe_map, similarity
from sciJEPA.explore.states import on_map, pool
from sciJEPA.explore.surprise import surprise

__all__ = [
    "analogs",
    "attention",
    "canonical_correlation",
    "composites",
    "followed",
    "intrinsic_dimension",
    "on_map",
    "pool",
    "principal_components",
    "probe_map",
    "rank",
    "receptive_field",
    "regimes",
    "similarity",
    "surprise",
    "token_components",
    "transitions",
    "umap",
]
