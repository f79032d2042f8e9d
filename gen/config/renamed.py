"""Old names of classes. Configs and manifests of older runs have these names, and the runs can still be resumed and sampled.

If you move or rename a class that a config may hold, add its old name here.
"""

from __future__ import annotations

TYPES: dict[str, str] = {
    "gen.adapters.LoRA": "gen.optim.adapters.LoRA",
    "gen.adapters.Prompt": "gen.optim.adapters.Prompt",
    "gen.alarms.Config": "gen.config.launch.Alarms",
    "gen.augment.ADA": "gen.families.gan.ada.ADA",
    "gen.augment.DiffAugment": "gen.families.gan.augment.DiffAugment",
    "gen.checkpoint.Config": "gen.config.launch.Save",
    "gen.config.Config": "gen.config.experiment.Config",
    "gen.data.images.Config": "gen.data.images.dataset.Images",
    "gen.data.text.Config": "gen.data.text.dataset.Text",
    "gen.decoding.Sampling": "gen.families.language.decoding.Sampling",
    "gen.families.gan.Config": "gen.families.gan.family.GAN",
    "gen.families.gan.Request": "gen.families.gan.family.Request",
    "gen.families.lm.Config": "gen.families.language.lm.LM",
    "gen.families.lm.Request": "gen.families.language.lm.Request",
    "gen.families.mlm.Config": "gen.families.language.mlm.MLM",
    "gen.families.mlm.Request": "gen.families.language.mlm.Request",
    "gen.families.seq2seq.Config": "gen.families.language.seq2seq.Seq2Seq",
    "gen.families.vae.Config": "gen.families.vae.family.VAE",
    "gen.families.vae.Request": "gen.families.vae.family.Request",
    "gen.faults.Config": "gen.config.launch.Faults",
    "gen.likelihoods.Bernoulli": "gen.families.vae.likelihoods.Bernoulli",
    "gen.likelihoods.ContinuousBernoulli": "gen.families.vae.likelihoods.ContinuousBernoulli",
    "gen.likelihoods.DiscretizedLogistic": "gen.families.vae.likelihoods.DiscretizedLogistic",
    "gen.likelihoods.Gaussian": "gen.families.vae.likelihoods.Gaussian",
    "gen.log.Config": "gen.config.launch.Log",
    "gen.optim.Group": "gen.optim.optimizers.Group",
    "gen.optim.OptimConfig": "gen.optim.optimizers.Optimizer",
    "gen.parallel.Config": "gen.config.launch.Parallel",
    "gen.pictures.Options": "gen.media.image.ImageOptions",
    "gen.priors.GaussianMixture": "gen.families.vae.priors.GaussianMixture",
    "gen.priors.StandardNormal": "gen.families.vae.priors.StandardNormal",
    "gen.priors.VampPrior": "gen.families.vae.priors.VampPrior",
    "gen.runs.code_sounds.SoundOptions": "gen.derived.code_sounds.SoundOptions",
    "gen.runs.described.DescribedOptions": "gen.derived.described.DescribedOptions",
    "gen.runs.encoded.Encoded": "gen.derived.encoded.Encoded",
    "gen.runs.to_text.ToText": "gen.derived.to_text.ToText",
    "gen.schedules.Piecewise": "gen.optim.schedules.Piecewise",
    "gen.schedules.Warmup": "gen.optim.schedules.Warmup",
    "gen.schedules.WarmupCosine": "gen.optim.schedules.WarmupCosine",
    "gen.schedules.WarmupLinear": "gen.optim.schedules.WarmupLinear",
    "gen.texts.Options": "gen.media.text.TextOptions",
}
"""{old name "module.Class": present name "module.Class"}."""

VALUES: dict[tuple[str, str], str] = {
    ("objective", "non_saturating"): "gen.families.gan.losses.NonSaturating",
    ("objective", "minimax"): "gen.families.gan.losses.Minimax",
    ("objective", "least_squares"): "gen.families.gan.losses.LeastSquares",
    ("objective", "wasserstein"): "gen.families.gan.losses.Wasserstein",
    ("objective", "hinge"): "gen.families.gan.losses.Hinge",
    ("objective", "relativistic"): "gen.families.gan.losses.Relativistic",
    ("objective", "relativistic_average"): "gen.families.gan.losses.RelativisticAverage",
}
"""{(field, word in older configs): "module.Class"}, for fields that held one of several words, and now hold an object."""
