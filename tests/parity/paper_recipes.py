"""What papers trained, typed from their authors' files in their own terms, and not from ours.

ho       github.com/hojonathanho/diffusion at 1e0dceb, scripts/run_cifar.py and
         diffusion_tf/tpu_utils/tpu_utils.py; steps from the paper (appendix B); DDIM's
         (Song et al. 2021): --timesteps 50 --eta 0 --skip_type quad of github.com/ermongroup/ddim
nichol   github.com/openai/improved-diffusion at 1bc7bbb, README.md ("Models and
         Hyperparameters") and improved_diffusion/script_util.py
song     github.com/yang-song/score_sde at 0acb9e0, configs/default_cifar10_configs.py and
         configs/{vp,subvp,ve}/cifar10_*_continuous.py; of what is discrete
         configs/vp/cifar10_ddpmpp.py, configs/ve/cifar10_ncsnpp.py, sde_lib.py
ermon    github.com/ermongroup/ncsnv2 at 1bcea03, configs/cifar10.yml
karras   github.com/NVlabs/edm at 008a4e5, README.md ("Training new models") and train.py
dhariwal github.com/openai/guided-diffusion at 22e0df8, README.md; batches, steps, rates
         and weight decay from the paper (appendix I, tables 11 and 12)
liu      github.com/gnobitab/RectifiedFlow at 5a1fd4d,
         ImageGeneration/configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py
tong     github.com/atong01/conditional-flow-matching at cacd4dc, examples/images/cifar10
salimans the paper (Ho and Salimans 2022), sections 2 and 4.1; parameters as guided-diffusion's
         UNetModel has them with 1001 classes and 3 channels out
peebles  github.com/facebookresearch/DiT at ed81ce2, train.py, diffusion/__init__.py, sample_ddp.py;
         sections 4 and 5.1 of the paper
lipman   the paper's table 3 and appendix E.2; parameters as guided-diffusion's UNetModel has them
         with ADM's blocks
"""

HO, NICHOL = 'ddpm_cifar10', 'improved_ddpm_cifar10'
SONG, KARRAS, FACES = 'score_sde_cifar10', 'edm_cifar10', 'edm_ffhq64'
IMAGENET, DHARIWAL, FLOW = 'edm_imagenet64', 'adm_imagenet', 'rectified_flow_cifar10'
DIT = 'dit_imagenet'
CLASSIFIERS, LADDER = 'adm_classifier_imagenet', 'ncsnv2_cifar10'

# File and variant: parameters as the reference counts them, millions of images in training, calls
# of the network for an image (None: an adaptive solver says; 0: it draws none).
ROWS = {
    (HO, ''): (35_746_307, 102.4, 1000),
    (HO, 'ddim'): (35_746_307, 102.4, 49),  # the first two of its 50 times are both 0
    (HO, 'bound'): (35_746_307, 102.4, 1000),
    (NICHOL, ''): (52_546_438, 64, 4000),
    (NICHOL, 'vlb'): (52_546_438, 64, 4000),
    (SONG, ''): (61_804_419, 166.4, 1000),
    (SONG, 'deep'): (106_632_579, 121.6, 1000),
    (SONG, 'sub_vp'): (61_804_419, 166.4, 1000),
    (SONG, 'sub_vp_deep'): (106_632_579, 121.6, 1000),
    (SONG, 've'): (62_758_915, 166.4, 2000),
    (SONG, 've_deep'): (107_587_075, 121.6, 2000),
    (SONG, 'discrete'): (61_804_419, 166.4, 1000),
    (SONG, 've_discrete'): (62_693_251, 166.4, 2000),
    (LADDER, ''): (29_694_083, 38.4, 1161),
    (KARRAS, ''): (55_733_891, 200, 35),
    (KARRAS, 'conditional'): (55_735_299, 200, 35),
    (KARRAS, 've'): (56_397_827, 200, 35),
    (KARRAS, 've_conditional'): (56_400_643, 200, 35),
    (FACES, ''): (61_805_571, 200, 79),
    (FACES, 've'): (62_761_091, 200, 79),
    (FACES, 'afhq'): (61_805_571, 200, 79),
    (FACES, 'afhq_ve'): (62_761_091, 200, 79),
    (IMAGENET, ''): (295_899_267, 2500, 511),
    (IMAGENET, 'deterministic'): (295_899_267, 2500, 79),
    (DHARIWAL, ''): (295_904_454, 1105.92, 250),
    (DHARIWAL, 'at_128'): (421_529_606, 1116.16, 250),
    (DHARIWAL, 'at_256'): (553_838_086, 506.88, 250),
    (DHARIWAL, 'at_256_unconditional'): (552_814_086, 506.88, 250),
    (DHARIWAL, 'at_512'): (558_997_638, 496.64, 250),
    (DHARIWAL, 'classifier_free'): (295_900_035, 819.2, 256),
    (CLASSIFIERS, ''): (65_438_568, 307.2, 0),
    (CLASSIFIERS, 'at_128'): (42_568_040, 76.8, 0),
    (CLASSIFIERS, 'at_256'): (54_096_360, 128, 0),
    (CLASSIFIERS, 'at_512'): (54_448_360, 128, 0),
    (DIT, ''): (675_129_632, 1792, 250),
    (DIT, 'at_512'): (675_129_632 + 3 * 256 * 1152, 768, 250),  # positions of 1024 patches, not 256
    (FLOW, ''): (61_804_419, 102.4, None),
    (FLOW, 'icfm'): (35_746_307, 51.2, None),
    (FLOW, 'ot_cfm'): (35_746_307, 51.2, None),
    (FLOW, 'fm_ot'): (171_268_099, 100.096, None),
}

# In the authors' terms: optimiser, moving average, network, data.
SAME = {  # of all that Ho et al., Song et al. and Liu et al. train
    'optimizer.learning_rate': 2e-4,  # optim.lr
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 5000,
    'optimizer.decay_steps': 0,
    'batch_size': 128,
    'data.image_size': 32,
    'data.flip': True,  # data.random_flip
    'data.num_classes': 0,
    'model.channels': 128,  # model.nf
    'model.multipliers': (1, 2, 2, 2),  # model.ch_mult
    'model.attention': (16,),  # model.attn_resolutions
    'diffusion.times': 'uniform',
    'diffusion.weighting': 'simple',  # training.likelihood_weighting
}
DDPMPP = {'model.embedding': 'positional', 'model.encoder': 'standard', 'model.fir': False}
NCSNPP = {'model.embedding': 'fourier', 'model.encoder': 'residual', 'model.fir': True}
EDM = {
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.clip': 0.0,
    'optimizer.weight_decay': 0.0,
    'optimizer.decay_steps': 0,
    'diffusion.process': 'edm',  # --precond
    'diffusion.prediction': 'edm',
    'diffusion.weighting': 'simple',  # of F: the loss's weight times c_out^2 is 1
    'diffusion.told': 'log_ratio',  # c_noise
    'diffusion.times': 'lognormal',
    'diffusion.range': (0.002, 80.0),  # sigma_min, sigma_max of the sampler
    'diffusion.times_mean': -1.2,  # P_mean
    'diffusion.times_std': 1.2,  # P_std
    'diffusion.sigma_data': 0.5,
    'diffusion.label_dropout': 0.0,
    'sampler.name': 'heun',
    'sampler.spacing': 'karras',
    'sampler.clip': False,
    'data.flip': False,  # --xflip
}
ADM = {
    'model.attention': (32, 16, 8),  # --attention_resolutions
    'model.head_channels': 64,  # --num_head_channels
    'model.heads': 0,
    'model.scale_shift': True,  # --use_scale_shift_norm
    'model.resample_in_blocks': True,  # --resblock_updown
    'data.num_classes': 1000,
    'data.fit': 'resize',  # to the middle, both center_crop_arr and --transform=center-crop
}
GUIDED = ADM | {
    'diffusion.timesteps': 1000,  # --diffusion_steps
    'sampler.name': 'ancestral',
    'sampler.clip': True,  # --clip_denoised
    'diffusion.learned_variance': True,  # --learn_sigma
    'diffusion.loss': 'hybrid',  # --use_kl False
    'diffusion.vlb_weight': 1e-3,  # --rescale_learned_sigmas False: 1 / T
    'diffusion.prediction': 'eps',  # --predict_xstart False
    'diffusion.told': 'time',  # --rescale_timesteps False
    'data.flip': True,  # random_flip
    'ema_decay': 0.9999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'sample.knobs.steps': 250,  # --timestep_respacing
    'sampler.spacing': 'linspace',
    'sampler.variance': 'learned_range',
}
NOISED = ADM | {
    'model.channels': 128,  # --classifier_width
    'model.dropout': 0.0,
    'diffusion.timesteps': 1000,
    'diffusion.told': 'time',
    'data.flip': True,
    'data.crop': 0.8,  # min_crop_frac
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.warmup': 0,
    'optimizer.clip': 0.0,
}
LARGER = GUIDED | {  # than 64x64
    'batch_size': 256,
    'model.channels': 256,
    'model.blocks': 2,
    'model.dropout': 0.0,
    'diffusion.betas': 'linear',
    'optimizer.learning_rate': 1e-4,
}
LARGER_NOISED = NOISED | {
    'batch_size': 256,
    'model.blocks': 2,
    'diffusion.betas': 'linear',
    'optimizer.learning_rate': 3e-4,
    'optimizer.decay': 'linear',  # --anneal_lr
    'optimizer.weight_decay': 0.05,
}
PEEBLES = {
    'network': 'dit',
    'model.size': 'XL',  # DiT-XL/2
    'model.patch': 2,
    'batch_size': 256,
    'data.num_classes': 1000,
    'data.flip': True,
    'data.fit': 'resize',  # to the middle, center_crop_arr
    'optimizer.learning_rate': 1e-4,
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.eps': 1e-8,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'optimizer.decay_steps': 0,
    'optimizer.clip': 0.0,
    'ema_decay': 0.9999,
    'ema_rampup': 0.0,
    'latent.factor': 0.18215,
    'diffusion.timesteps': 1000,  # diffusion_steps
    'diffusion.betas': 'linear',  # noise_schedule
    'diffusion.beta_min': 1e-4,
    'diffusion.beta_max': 0.02,
    'diffusion.prediction': 'eps',  # predict_xstart=False
    'diffusion.learned_variance': True,  # learn_sigma
    'diffusion.loss': 'hybrid',  # use_kl=False
    'diffusion.vlb_weight': 1e-3,  # rescale_learned_sigmas=False: 1 / T
    'diffusion.times': 'uniform',
    'diffusion.told': 'time',
    'diffusion.label_dropout': 0.1,  # class_dropout_prob
    'sampler.name': 'ancestral',  # p_sample_loop
    'sampler.variance': 'learned_range',
    'sampler.spacing': 'linspace',
    'sampler.clip': False,  # clip_denoised
    'sample.knobs.steps': 250,  # --num-sampling-steps
}
VP = (
    SAME
    | DDPMPP
    | {
        'model.dropout': 0.1,
        'model.blocks': 4,
        'diffusion.process': 'vp_linear',
        'diffusion.range': (0.1, 20.0),
        'diffusion.t_min': 1e-5,  # eps of get_sde_loss_fn
        'diffusion.prediction': 'eps',  # score = -network / std
        'diffusion.told': 'time',  # labels = t * 999
        'optimizer.clip': 1.0,
        'optimizer.eps': 1e-8,
        'ema_decay': 0.9999,  # model.ema_rate
        'sampler.spacing': 'linear',
    }
)
NCSN = (
    SAME
    | NCSNPP
    | {
        'model.dropout': 0.1,
        'model.blocks': 4,
        'diffusion.process': 've',
        'diffusion.prediction': 'score',  # model.scale_by_sigma
        'diffusion.told': 'log_sigma',
        'sampler.name': 'predictor_corrector',  # reverse_diffusion and langevin
        'sampler.clip': False,
        'ema_decay': 0.999,
        'sample.knobs.snr': 0.16,
        'sampler.corrections': 1,  # sampling.n_steps_each
        'sampler.spacing': 'linear',
    }
)
ERMON = {
    'sampler.clip': False,
    'optimizer.learning_rate': 1e-4,  # optim.lr
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'optimizer.decay_steps': 0,
    'optimizer.clip': 0.0,
    'batch_size': 128,
    'data.image_size': 32,
    'data.flip': True,  # data.random_flip
    'data.num_classes': 0,
    'network': 'refinenet',
    'model.channels': 128,  # model.ngf
    'model.multipliers': (1, 2, 2, 2),
    'diffusion.process': 'ladder',  # model.sigma_dist: geometric
    'diffusion.levels': 232,  # model.num_classes
    'diffusion.times': 'levels',
    'diffusion.prediction': 'score',
    'diffusion.weighting': 'simple',  # training.anneal_power: 2
    'ema_decay': 0.999,  # model.ema_rate
    'ema_rampup': 0.0,
    'sampler.name': 'annealed_langevin',
    'sampler.spacing': 'linear',
    'sampler.corrections': 5,  # sampling.n_steps_each
    'sample.knobs.steps': 232,
}
CIFAR = EDM | {
    'batch_size': 512,
    'data.num_classes': 0,
    'model.channels': 128,
    'model.multipliers': (2, 2, 2),
    'model.blocks': 4,
    'model.attention': (16,),
    'model.dropout': 0.13,
    'diffusion.augment': 0.12,
    'optimizer.learning_rate': 10e-4,
    'sample.knobs.steps': 18,
}
FFHQ = CIFAR | {
    'batch_size': 256,
    'data.image_size': 64,
    'model.multipliers': (1, 2, 2, 2),  # --cres
    'model.dropout': 0.05,
    'diffusion.augment': 0.15,
    'optimizer.learning_rate': 2e-4,
    'sample.knobs.steps': 40,
}
TONG = SAME | {
    'model.blocks': 2,
    'model.dropout': 0.1,
    'model.scale_shift': False,
    'model.resample_in_blocks': False,
    'optimizer.clip': 1.0,
    'optimizer.eps': 1e-8,
    'ema_decay': 0.9999,
    'diffusion.process': 'flow',
    'diffusion.prediction': 'velocity',
}
DDPM = SAME | {
    'network': 'unet',  # unet2d16b2
    'model.blocks': 2,  # num_res_blocks
    'model.dropout': 0.1,
    'optimizer.clip': 1.0,  # grad_clip
    'optimizer.eps': 1e-8,
    'ema_decay': 0.9999,
    'ema_rampup': 0.0,
    'diffusion.timesteps': 1000,  # num_diffusion_timesteps
    'diffusion.betas': 'linear',  # beta_schedule
    'diffusion.beta_min': 1e-4,  # beta_start
    'diffusion.beta_max': 0.02,  # beta_end
    'diffusion.prediction': 'eps',  # model_mean_type
    'diffusion.learned_variance': False,  # model_var_type: fixedlarge
    'diffusion.loss': 'simple',  # loss_type: mse
    'diffusion.told': 'time',
    'sampler.name': 'ancestral',
    'sampler.variance': 'fixed_large',
    'sampler.clip': True,  # clip_denoised
}
IMPROVED = {
    'sampler.name': 'ancestral',
    'sampler.clip': True,  # --clip_denoised
    'optimizer.learning_rate': 1e-4,  # --lr
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.0,
    'optimizer.warmup': 0,
    'optimizer.decay_steps': 0,  # --lr_anneal_steps
    'optimizer.clip': 0.0,
    'batch_size': 128,
    'ema_decay': 0.9999,  # --ema_rate
    'ema_rampup': 0.0,
    'data.image_size': 32,
    'data.flip': False,
    'data.num_classes': 0,  # --class_cond
    'network': 'adm',
    'model.channels': 128,  # --num_channels
    'model.multipliers': (1, 2, 2, 2),
    'model.blocks': 3,  # --num_res_blocks
    'model.attention': (16, 8),  # --attention_resolutions
    'model.dropout': 0.3,
    'model.heads': 4,  # --num_heads
    'model.scale_shift': True,  # --use_scale_shift_norm
    'model.resample_in_blocks': False,
    'diffusion.timesteps': 4000,  # --diffusion_steps
    'diffusion.betas': 'cosine',  # --noise_schedule
    'diffusion.prediction': 'eps',  # --predict_xstart False
    'diffusion.learned_variance': True,  # --learn_sigma
    'diffusion.loss': 'hybrid',  # --use_kl False
    'diffusion.vlb_weight': 1e-3,  # --rescale_learned_sigmas True: T / 1000 of a term
    'diffusion.told': 'thousandths',  # --rescale_timesteps True
    'diffusion.times': 'uniform',  # --schedule_sampler
    'sampler.variance': 'learned_range',
    'sampler.spacing': 'linspace',
}
RECIPES = {
    (HO, ''): DDPM,
    (HO, 'ddim'): {
        'sampler.name': 'ddim',
        'sampler.spacing': 'quadratic',
        'sampler.clip': False,
        'sample.knobs.eta': 0.0,
    },
    (HO, 'bound'): DDPM
    | {'diffusion.loss': 'vlb', 'optimizer.clip': 1e3, 'optimizer.eps': 1e-5},  # loss_type: kl
    (NICHOL, ''): IMPROVED,
    (NICHOL, 'vlb'): IMPROVED
    | {
        'diffusion.loss': 'vlb',  # --use_kl True
        'diffusion.times': 'loss_second_moment',  # --schedule_sampler loss-second-moment
    },
    (SONG, ''): VP,
    (SONG, 'deep'): VP | {'model.blocks': 8},
    (SONG, 'sub_vp'): VP | {'diffusion.process': 'sub_vp'},
    (SONG, 'sub_vp_deep'): VP | {'diffusion.process': 'sub_vp', 'model.blocks': 8},
    (SONG, 've'): NCSN,
    (SONG, 've_deep'): NCSN | {'model.blocks': 8},
    (SONG, 'discrete'): SAME
    | DDPMPP
    | {
        'network': 'song',
        'model.dropout': 0.1,
        'model.blocks': 4,
        'diffusion.timesteps': 1000,  # model.num_scales
        'diffusion.betas': 'linear',
        'diffusion.beta_min': 0.1 / 1000,  # model.beta_min / N
        'diffusion.beta_max': 20.0 / 1000,
        'diffusion.prediction': 'eps',  # get_ddpm_loss_fn
        'diffusion.loss': 'simple',
        'diffusion.told': 'time',
        'optimizer.clip': 1.0,
        'optimizer.eps': 1e-8,
        'ema_decay': 0.9999,
        'sampler.name': 'ancestral',  # sampling.predictor; sampling.corrector: none
        'sampler.variance': 'fixed_large',  # vpsde_update_fn
        'sampler.clip': False,
    },
    (SONG, 've_discrete'): NCSN
    | {
        'model.embedding': 'positional',
        'diffusion.process': 'ladder',
        'diffusion.levels': 1000,  # model.num_scales
        'diffusion.times': 'levels',
        'diffusion.told': 'level',
        'sample.knobs.steps': 1000,
    },
    (LADDER, ''): ERMON,
    (KARRAS, ''): CIFAR | DDPMPP,
    (KARRAS, 'conditional'): CIFAR | DDPMPP | {'data.num_classes': 10},
    (KARRAS, 've'): CIFAR | NCSNPP,
    (KARRAS, 've_conditional'): CIFAR | NCSNPP | {'data.num_classes': 10},
    (FACES, ''): FFHQ | DDPMPP,
    (FACES, 've'): FFHQ | NCSNPP,
    (FACES, 'afhq'): FFHQ | DDPMPP | {'model.dropout': 0.25},
    (FACES, 'afhq_ve'): FFHQ | NCSNPP | {'model.dropout': 0.25},
    (IMAGENET, ''): EDM
    | ADM
    | {
        'batch_size': 4096,
        'data.image_size': 64,
        'model.channels': 192,
        'model.multipliers': (1, 2, 3, 4),
        'model.dropout': 0.1,
        'diffusion.augment': 0.0,
        'optimizer.learning_rate': 1e-4,
        'sample.knobs.churn': 40.0,  # --S_churn
        'sampler.churn_range': (0.05, 50.0),  # --S_min, --S_max
        'sampler.churn_noise': 1.003,  # --S_noise
    },
    (IMAGENET, 'deterministic'): {'sample.knobs.churn': 0.0},
    (DHARIWAL, ''): GUIDED
    | {
        'batch_size': 2048,
        'data.image_size': 64,
        'model.channels': 192,
        'model.blocks': 3,
        'model.dropout': 0.1,
        'diffusion.betas': 'cosine',  # --noise_schedule
        'optimizer.learning_rate': 3e-4,
    },
    (DHARIWAL, 'at_128'): LARGER
    | {
        'data.image_size': 128,
        'model.multipliers': (1, 1, 2, 3, 4),  # create_model's, of --image_size
        'model.heads': 4,  # --num_heads
        'model.head_channels': 0,
    },
    (DHARIWAL, 'at_256'): LARGER
    | {'data.image_size': 256, 'model.multipliers': (1, 1, 2, 2, 4, 4)},
    (DHARIWAL, 'at_256_unconditional'): {'data.num_classes': 0},
    (DHARIWAL, 'at_512'): LARGER
    | {'data.image_size': 512, 'model.multipliers': (0.5, 1, 1, 2, 2, 4, 4)},
    (DHARIWAL, 'classifier_free'): ADM
    | {
        'batch_size': 2048,
        'data.image_size': 64,
        'data.flip': True,
        'model.channels': 192,
        'model.multipliers': (1, 2, 3, 4),
        'model.blocks': 3,
        'model.dropout': 0.1,
        'optimizer.learning_rate': 3e-4,
        'optimizer.warmup': 0,
        'optimizer.weight_decay': 0.0,
        'ema_decay': 0.9999,
        'steps': 400_000,
        'diffusion.process': 'vp_angle',
        'diffusion.prediction': 'eps',
        'diffusion.weighting': 'simple',
        'diffusion.times': 'uniform',
        'diffusion.label_dropout': 0.1,  # p_uncond
        'sampler.name': 'ancestral',
        'sampler.variance': 'between',
        'sampler.share': 0.3,  # v
        'sampler.spacing': 'linear',  # uniformly spaced u
        'sampler.clip': True,  # see the config
        'sample.knobs.guidance': 1.1,  # 1 + w
    },
    (CLASSIFIERS, ''): NOISED
    | {
        'batch_size': 1024,
        'data.image_size': 64,
        'model.multipliers': (1, 2, 3, 4),
        'model.blocks': 4,  # --classifier_depth
        'diffusion.betas': 'cosine',
        'optimizer.learning_rate': 6e-4,
        'optimizer.decay': 'linear',  # --anneal_lr, to 0 at --iterations
        'optimizer.decay_steps': 300_000,
        'optimizer.weight_decay': 0.2,
    },
    (CLASSIFIERS, 'at_128'): LARGER_NOISED
    | {
        'data.image_size': 128,
        'model.multipliers': (1, 1, 2, 3, 4),
        'optimizer.decay_steps': 300_000,
    },
    (CLASSIFIERS, 'at_256'): LARGER_NOISED
    | {
        'data.image_size': 256,
        'model.multipliers': (1, 1, 2, 2, 4, 4),
        'optimizer.decay_steps': 500_000,
    },
    (CLASSIFIERS, 'at_512'): LARGER_NOISED
    | {
        'data.image_size': 512,
        'model.multipliers': (0.5, 1, 1, 2, 2, 4, 4),
        'optimizer.decay_steps': 500_000,
    },
    (DIT, ''): PEEBLES | {'data.image_size': 256, 'steps': 7_000_000},
    (DIT, 'at_512'): PEEBLES | {'data.image_size': 512, 'steps': 3_000_000},
    (FLOW, ''): SAME
    | DDPMPP
    | {
        'model.blocks': 4,
        'model.dropout': 0.15,
        'optimizer.clip': 1.0,
        'optimizer.eps': 1e-8,
        'diffusion.process': 'flow',
        'diffusion.prediction': 'velocity',  # up to its sign, as time runs the other way
        'diffusion.pairing': 'random',
    },
    (FLOW, 'icfm'): TONG | {'diffusion.pairing': 'random'},
    (FLOW, 'ot_cfm'): TONG | {'diffusion.pairing': 'optimal'},
    (FLOW, 'fm_ot'): {
        'network': 'adm',
        'model.channels': 256,
        'model.blocks': 2,  # Depth
        'model.multipliers': (1, 2, 2, 2),  # Channels multiple
        'model.head_channels': 64,  # Heads Channels
        'model.attention': (16,),
        'model.dropout': 0.0,
        'batch_size': 256,
        'steps': 391_000,
        'optimizer.learning_rate': 5e-4,
        'optimizer.decay': 'linear',  # Polynomial Decay
        'optimizer.decay_steps': 391_000,
        'optimizer.warmup': 45_000,
        'optimizer.b1': 0.9,
        'optimizer.b2': 0.999,
        'optimizer.weight_decay': 0.0,
        'optimizer.eps': 1e-8,
        'optimizer.clip': 0.0,
        'data.num_classes': 0,
        'diffusion.process': 'flow',
        'diffusion.prediction': 'velocity',
        'diffusion.times': 'uniform',
        'diffusion.pairing': 'random',
    },
}
