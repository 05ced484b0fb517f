"""Which cache a forward may use: transformers' own, or `SkipCache` where `kv="skip"`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache

from skipgpt.errors import ConfigError
from skipgpt.model.caches.skip_cache import SkipCache, SkipLayer, turn_into_skip_cache


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache of transformers holds: the whole storage behind its keys and values.

    Preallocated space counts (`StaticCache`, and `PreallocatedLayer` once it has decoded), and so
    does a whole prompt of which a sliding layer exposes only the end; what a quantised cache has
    packed does not.
    """
    if isinstance(cache, SkipCache):
        return cache.nbytes
    parts = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    parts += [room.whole for layer in cache.layers for room in getattr(layer, "rooms", ())]
    held = [part.untyped_storage() for part in parts if isinstance(part, Tensor)]
    return sum({each.data_ptr(): each.nbytes() for each in held}.values())


def dense_cache_bytes(cache: Any) -> int:
    """Bytes that a cache would hold if no token had skipped attention."""
    return cache.dense_nbytes if isinstance(cache, SkipCache) else cache_bytes(cache)


def fitting_cache(cache: Any, policy: str, config: Any, layers: int, batch: int) -> Any:
    """The cache that a forward of `batch` sequences is to use, for a policy of keys and values.

    An empty `DynamicCache`, as `generate` makes, turns into a `SkipCache` in place where the policy
    wants one; None asks for a new one.

    Raises:
        ConfigError: a cache of the other policy, of another model, or of another batch size.
    """
    doing = f'running a model with kv="{policy}"'
    if policy == "skip":
        if cache is None:
            return SkipCache(config)
        if type(cache) is DynamicCache and not cache.get_seq_length() and not cache.offloading:
            turn_into_skip_cache(cache, config)
        if not isinstance(cache, SkipCache):
            raise ConfigError(
                doing,
                got=f"a {type(cache).__name__} of {cache.get_seq_length()} tokens",
                expected="a SkipCache, or an empty DynamicCache to turn into one",
                todo="leave past_key_values and cache_implementation out; a model makes its own",
            )
    elif isinstance(cache, SkipCache):
        raise ConfigError(
            doing,
            got="a SkipCache",
            expected="any other cache of transformers",
            todo="leave past_key_values out, or pass a DynamicCache",
        )
    if cache is not None:
        _refuse_misfit(cache, doing, config, layers, batch)
    return cache


def _refuse_misfit(cache: Any, doing: str, config: Any, layers: int, batch: int) -> None:
    # With transformers' early exit fewer layers run than the model has.
    text = config.get_text_config()
    running = min(layers, text.num_hidden_layers)
    if cache.layers and not running <= len(cache.layers) <= layers:
        raise ConfigError(
            doing, got=f"a cache of {len(cache.layers)} layers", expected=f"{layers} layers"
        )
    if isinstance(cache, SkipCache) and not cache.get_seq_length():
        windows = [layer.window for layer in cache.layers]
        expected = [layer.window for layer in SkipCache(config).layers]
        if windows[: len(expected)] != expected[: len(windows)]:
            raise ConfigError(
                doing,
                got=f"a cache with windows {windows}",
                expected=f"{expected}, as the layers of this model have them",
            )
    held = _batch(cache.layers[0]) if cache.layers and _is_filled(cache) else None
    if held not in (None, batch):
        raise ConfigError(
            doing,
            got=f"a cache of {held} sequences",
            expected=f"as many as there are inputs, {batch}",
        )


def _is_filled(cache: Any) -> bool:
    """Whether the cache holds tokens, or is allocated for a batch size."""
    length = cache.get_seq_length()
    # A static cache has its length on the device; reading it would make the host wait.
    return bool(cache.layers[0].is_initialized if isinstance(length, Tensor) else length)


def _batch(layer: Any) -> int | None:
    """Batch size of a cache layer; None if it is unknown."""
    if isinstance(layer, SkipLayer):
        return layer.batch_size
    keys = getattr(layer, "keys", None)
    return len(keys) if isinstance(keys, Tensor) and keys.ndim == 4 else None
