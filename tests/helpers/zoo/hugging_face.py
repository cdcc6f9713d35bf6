"""Models of the transformers library, from small configurations."""

from __future__ import annotations

import importlib.util

from zoo.entry import Entry, image, words


def _bert():
    import transformers as T

    return T.BertForSequenceClassification(
        T.BertConfig(
            vocab_size=17, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
            max_position_embeddings=16, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _gpt2():
    import transformers as T

    return T.GPT2LMHeadModel(
        T.GPT2Config(
            vocab_size=17, n_positions=16, n_embd=12, n_layer=2, n_head=3, n_inner=20, use_cache=False,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def _llama():
    import transformers as T

    return T.LlamaForCausalLM(
        T.LlamaConfig(
            vocab_size=17, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
        )
    )  # fmt: skip


def _vit():
    import transformers as T

    return T.ViTForImageClassification(
        T.ViTConfig(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=16,
            patch_size=4, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _logits(out):
    return out.logits.flatten(1)[:, :5]


_BERT = {
    f"bert.encoder.layer.{n}.{part}": k
    for n in (0, 1)
    for part, k in (("attention.self.query", 3), ("intermediate.dense", 20))
}
_GPT2 = {
    f"transformer.h.{n}.{part}": k
    for n in (0, 1)
    for part, k in (("attn.c_attn", 3), ("mlp.c_fc", 20))
}
_LLAMA = {
    f"model.layers.{n}.{part}": k
    for n in (0, 1)
    for part, k in (("self_attn.q_proj", 2), ("mlp.gate_proj", 20))
}
_VIT = {
    f"vit.layers.{n}.{part}": k
    for n in (0, 1)
    for part, k in (("attention.q_proj", 3), ("mlp.fc1", 20))
}
ENTRIES = (
    {
        "hf bert": Entry(
            _bert, words(17, 8), {**_BERT, "bert.pooler.dense": 12},
            {"bert.embeddings.word_embeddings": "normali[sz]es"}, never={"classifier": "outputs"}, output=_logits,
        ),
        "hf gpt2": Entry(
            _gpt2, words(17, 8), {**_GPT2, "transformer.wte": 12}, never={"transformer.wte.weight:0": "outputs"},
            output=_logits, blocks=["transformer.h.0", "transformer.h.1"],
        ),
        "hf llama": Entry(
            _llama, words(17, 8), {**_LLAMA, "model.embed_tokens": 16}, never={"lm_head": "outputs"}, output=_logits,
            blocks=["model.layers.0", "model.layers.1"],
        ),
        "hf vit": Entry(
            _vit, image(3, 16), {**_VIT, "vit.embeddings.patch_embeddings.projection": 12},
            never={
                "classifier": "outputs",
                "vit.embeddings.patch_embeddings.projection": "no layer can stand before it",
            },
            output=_logits, blocks=["vit.layers.0", "vit.layers.1"],
        ),
    }
    if importlib.util.find_spec("transformers")
    else {}
)  # fmt: skip
