import pytest
import torch
from torch.nn.functional import cosine_similarity, log_softmax

import cases
from runs import rows
from skipgpt.analysis import keep_by_token, trace_dense, trace_text
from skipgpt.errors import ConfigError
from skipgpt.evaluation.perplexity import perplexity
from skipgpt.evaluation.windows import rows_of
from skipgpt.model.state import execution, record_routing
from skipgpt.model.surgery import remove_routers
from tiny import byte_tokenizer, tiny_routed


def _rows(tokens: int = 40, length: int = 16) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(3)
    return rows_of(torch.randint(1, 257, (tokens,), generator=made), length)


@pytest.mark.parametrize("kind", ["sparse", "gated", "auto"])
def test_a_trace_holds_the_losses_and_the_sparsity_that_eval_gives(kind: str) -> None:
    model, each = tiny_routed(initializer_range=0.2), _rows()
    with execution(model, kind):
        trace = trace_text(model, byte_tokenizer(), each, batch_size=2)
        assert trace.measured == perplexity(model, each)
    told = trace.surprisal[trace.surprisal.isfinite()].double()
    assert told.mean().item() == pytest.approx(trace.measured.nll_per_token, rel=1e-6)
    assert 1 - trace.keep.double().mean().item() == pytest.approx(
        trace.measured.sparsity["module"], abs=1e-12
    )
    assert trace.compute.shape == (40,)


def test_every_number_is_that_of_the_token_it_stands_at() -> None:
    model, each = tiny_routed(initializer_range=0.2), _rows()
    trace = trace_text(model, byte_tokenizer(), each, batch_size=4)
    start = 0
    for row in each:
        here = slice(start, start + len(row))
        with record_routing(model) as recorded, torch.no_grad():
            scores = log_softmax(model(row[None]).logits[0].double(), -1)
        step = recorded.steps[0]
        for kind, module in enumerate(("attn", "mlp")):
            kept = torch.stack([keep[0] for keep in step.keeps(module)])
            assert torch.equal(trace.keep[:, kind, here], kept)
        own = -scores[:-1].gather(1, row[1:, None])[:, 0]
        torch.testing.assert_close(trace.surprisal[here][1:].double(), own, rtol=1e-4, atol=1e-5)
        assert trace.surprisal[here][0].isnan()
        entropy = -(scores.exp() * scores).sum(-1)
        torch.testing.assert_close(trace.entropy[here].double(), entropy, rtol=1e-4, atol=1e-5)
        start += len(row)


def test_norms_are_those_of_the_hidden_states_that_transformers_returns() -> None:
    model, each = tiny_routed(initializer_range=0.2), _rows(16)
    dense = trace_dense(model, byte_tokenizer(), each)
    states = remove_routers(model)(each[0][None], output_hidden_states=True).hidden_states
    for n, state in enumerate(states[:-1]):  # the last one is past the final norm
        norm = state[0].square().mean(-1).sqrt()
        torch.testing.assert_close(dense.norm[n], norm, rtol=1e-5, atol=1e-6)
    assert len(dense.norm) == len(states)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "falcon", "gemma2", "qwen3_moe"])
def test_layer_cosines_are_those_of_the_stream_between_layers(family: str) -> None:
    model, each = cases.routed(family), _rows(12)
    dense = trace_dense(model, byte_tokenizer(), each)
    states = remove_routers(model)(each[0][None], output_hidden_states=True).hidden_states
    for n in range(len(states) - 2):
        cosine = cosine_similarity(states[n][0], states[n + 1][0], dim=-1)
        torch.testing.assert_close(dense.layer_cosine[n], cosine, rtol=1e-4, atol=1e-5)
    assert dense.cosine.shape == (len(states) - 1, 2, 12)
    assert (dense.cosine <= 1 + 1e-6).all()


def test_tokens_are_compared_in_traces_of_the_same_rows_alone() -> None:
    model, each = tiny_routed(), _rows()
    trace, dense = (f(model, byte_tokenizer(), each) for f in (trace_text, trace_dense))
    assert keep_by_token(trace, dense).rows
    with pytest.raises(ConfigError, match="traces of different texts"):
        keep_by_token(trace, trace_dense(model, byte_tokenizer(), _rows(40, 20)))


def test_tracing_leaves_no_hook_and_no_mode_behind() -> None:
    model, ids = tiny_routed(), rows(2)
    model.train()
    before = model.eval()(ids).logits
    model.train()
    trace_text(model, byte_tokenizer(), ids)
    trace_dense(model, byte_tokenizer(), ids)
    assert model.training
    assert not any(m._forward_hooks for layer in model.model.layers for m in layer.modules())
    torch.testing.assert_close(model.eval()(ids).logits, before)


def test_a_model_that_decides_nothing_cannot_be_traced() -> None:
    model = tiny_routed()
    with execution(model, "dense"), pytest.raises(ConfigError, match="decides nothing"):
        trace_text(model, byte_tokenizer(), rows(2))
    with pytest.raises(ConfigError, match="add_routers"):
        trace_text(remove_routers(model), byte_tokenizer(), rows(2))
