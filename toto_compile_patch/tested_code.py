"""Fingerprints of upstream's code that was tested, to be read without importing ``toto``."""

from __future__ import annotations

FINGERPRINTS = {
    "toto.model.util.KVCache": {"6b3d04645da473df"},
    "toto.model.attention.BaseMultiheadAttention.positional_embedding": {"c7ad39cc0040ca25"},
    "toto.model.attention.BaseMultiheadAttention.run_attention": {
        "c4cb57bf0d7e594a",
        "38b15a3e5acc059e",
    },
    "toto.model.attention.BaseMultiheadAttention.forward": {"39f1af3892f39c05"},
    "toto.model.transformer.TransformerLayer.forward": {"2f5e036bac00e99e"},
    "toto.model.transformer.Transformer.forward": {"97b5e06ccf9ad500", "189db066c99218e5"},
    "toto.model.transformer.Transformer._get_mask": {"c48d430cc7d1292a"},
    "toto.model.backbone.TotoBackbone.allocate_kv_cache": {
        "ea7b67e40ac480d4",
        "959c88656d7b202c",
    },
    "toto.model.backbone.TotoBackbone.backbone": {
        "4710f39fc4be108a",
        "813e8c5e6800a261",
        "6991b696ca81fb61",
    },
    "toto.model.backbone.TotoBackbone.forward": {"ea73bf8e813b1607", "9ecb333a09919f1f"},
    "toto.model.toto.Toto.__init__": {"724c5bd8cada4483"},
    "toto.inference.forecaster.TotoForecaster.__init__": {"4b027d045a5dccbf", "24378c8af12acd6c"},
    "toto.model.attention.BaseMultiheadAttention.get_qkv": {"c1f082e7b9bf0b21", "4813d9b3acb847bb"},
    "toto.model.attention.BaseMultiheadAttention.rearrange_inputs": {"51b59cfed9256d97"},
    "toto.model.attention.BaseMultiheadAttention.rearrange_output": {"b8910f9e3d548a25"},
    "toto.model.rope.TimeAwareRotaryEmbedding.rotate_queries_and_keys": {"496fe92c6b3b27dc"},
    "toto.model.rope.TimeAwareRotaryEmbedding.get_scale": {"adc27a60e56d43e5", "b7d154d4dbc187f1"},
    "toto.model.util.RMSNorm.forward": {"07addec6134a289c", "86508666f059c7f9"},
    "toto.model.feed_forward.SwiGLU.forward": {"e4f09aeb47919177"},
    "toto.model.embedding.PatchEmbedding.forward": {"d28d75b1b9be91dc"},
    "toto.model.embedding.PatchEmbedding._patchify": {"fcc26e68690c581a"},
    "toto.model.distribution.MixtureOfStudentTsOutput.forward": {"30828cf3e60ff941"},
    "toto.model.distribution.StudentTOutput.forward": {"8b2d01a5b392dcc2"},
    "toto.model.scaler.StdMeanScaler.__call__": {"98e82f61045027cf"},
    "toto.model.scaler.CausalStdMeanScaler.__call__": {"8bbed413d70ba822"},
    "toto.model.scaler.CausalPatchStdMeanScaler.__call__": {"1dad1f8bdbc00317"},
    "toto.model.scaler.compute_causal_statistics": {"171db326463fcd8d"},
    "toto.inference.forecaster.replace_extreme_values": {"ece579a6cb7a8e17"},
    "toto.inference.forecaster.TotoForecaster.generate_mean": {
        "f92b9399a127aad3",
        "a8d740441d8cf4e1",
    },
    "toto.inference.forecaster.TotoForecaster.generate_samples": {
        "c5bd1146f2c22afa",
        "cd1849d8ceaf30f5",
    },
    "toto.inference.forecaster.TotoForecaster.create_affine_transformed": {"f746236dbc0a9674"},
}
"""Of each symbol that is replaced or relied on, in toto-ts 0.1.3 to 0.2.0, in timecopilot-toto
0.1.7 and in AutoGluon 1.5 and 1.6: as many as there are versions of its code among them. Its name
is that of toto-ts; other carriers keep the same definition in a module of another name."""

METHODS_OF_ATTENTION = (
    "forward",
    "get_qkv",
    "positional_embedding",
    "run_attention",
    "rearrange_inputs",
    "rearrange_output",
)

INHERITED = (
    *(
        f"toto.model.attention.{kind}.{method}"
        for kind in ("TimeWiseMultiheadAttention", "SpaceWiseMultiheadAttention")
        for method in METHODS_OF_ATTENTION
    ),
    "toto.model.rope.TimeAwareRotaryEmbedding.forward",
    "toto.model.rope.TimeAwareRotaryEmbedding.get_seq_pos",
    "toto.model.toto.Toto.compile",
)
"""What is replaced or relied on and has no definition of its own in those releases: a definition
that a later one gives it is not tested code."""

HOW_TO_COMPARE = "`python -m toto_compile_patch fingerprints` lists what differs"
"""Said where code is not tested code."""
