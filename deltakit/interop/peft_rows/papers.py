"""The papers of PEFT's tuners, which PEFT's configurations do not name."""

from deltakit.core.method import Paper
from deltakit.methods.ia3 import IA3
from deltakit.methods.lora import LoRA
from deltakit.methods.norms import NormTuning
from deltakit.methods.prefix import PrefixTuning
from deltakit.methods.prompt import PromptTuning

ICLR = "International Conference on Learning Representations"
ICML = "International Conference on Machine Learning"
NEURIPS = "Advances in Neural Information Processing Systems"

LIBRARY = Paper(
    key="peft",
    title="PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
    authors="Mangrulkar, Sourab and Gugger, Sylvain and Debut, Lysandre and Belkada, Younes and "
    "Paul, Sayak and Bossan, Benjamin",
    year=2022,
    venue="The library huggingface/peft",
)
"""For a tuner that is not below; the library's documentation names its paper."""

PAPERS = {
    "lora": LoRA.paper,
    "ia3": IA3.paper,
    "ln_tuning": NormTuning.paper,
    "prefix_tuning": PrefixTuning.paper,
    "prompt_tuning": PromptTuning.paper,
    "p_tuning": Paper(
        key="liu2021gpt",
        title="GPT Understands, Too",
        authors="Liu, Xiao and Zheng, Yanan and Du, Zhengxiao and Ding, Ming and Qian, Yujie and "
        "Yang, Zhilin and Tang, Jie",
        year=2021,
        venue="arXiv preprint",
        arxiv="2103.10385",
    ),
    "adalora": Paper(
        key="zhang2023adalora",
        title="AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        authors="Zhang, Qingru and Chen, Minshuo and Bukharin, Alexander and Karampatziakis, Nikos "
        "and He, Pengcheng and Cheng, Yu and Chen, Weizhu and Zhao, Tuo",
        year=2023,
        venue=ICLR,
        arxiv="2303.10512",
    ),
    "dora": Paper(
        key="liu2024dora",
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        authors="Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, "
        "Yu-Chiang Frank and Cheng, Kwang-Ting and Chen, Min-Hung",
        year=2024,
        venue=ICML,
        arxiv="2402.09353",
    ),
    "rslora": Paper(
        key="kalajdzievski2023rank",
        title="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        authors="Kalajdzievski, Damjan",
        year=2023,
        venue="arXiv preprint",
        arxiv="2312.03732",
    ),
    "eva": Paper(
        key="paischer2024eva",
        title="One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
        authors="Paischer, Fabian and Hauzenberger, Lukas and Schmied, Thomas and Alkin, Benedikt "
        "and Deisenroth, Marc Peter and Hochreiter, Sepp",
        year=2024,
        venue="arXiv preprint",
        arxiv="2410.07170",
    ),
    "corda": Paper(
        key="yang2024corda",
        title="CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for "
        "Task-Aware Parameter-Efficient Fine-tuning",
        authors="Yang, Yibo and Li, Xiaojie and Zhou, Zhongzhu and Song, Shuaiwen Leon and Wu, "
        "Jianlong and Nie, Liqiang and Ghanem, Bernard",
        year=2024,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2406.05223",
    ),
    "lora_ga": Paper(
        key="wang2024loraga",
        title="LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
        authors="Wang, Shaowen and Yu, Linxi and Li, Jian",
        year=2024,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2407.05000",
    ),
    "vera": Paper(
        key="kopiczko2024vera",
        title="VeRA: Vector-based Random Matrix Adaptation",
        authors="Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.",
        year=2024,
        venue=ICLR,
        arxiv="2310.11454",
    ),
    "vblora": Paper(
        key="li2024vblora",
        title="VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
        authors="Li, Yang and Han, Shaobo and Ji, Shihao",
        year=2024,
        venue=NEURIPS,
        arxiv="2405.15179",
    ),
    "loha": Paper(
        key="hyeonwoo2022fedpara",
        title="FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        authors="Hyeon-Woo, Nam and Ye-Bin, Moon and Oh, Tae-Hyun",
        year=2022,
        venue=ICLR,
        arxiv="2108.06098",
    ),
    "lokr": Paper(
        key="yeh2024lycoris",
        title="Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model "
        "Evaluation",
        authors="Yeh, Shih-Ying and Hsieh, Yu-Guan and Gao, Zhidong and Yang, Bernard B W and Oh, "
        "Giyeong and Gong, Yanmin",
        year=2024,
        venue=ICLR,
        arxiv="2309.14859",
    ),
    "oft": Paper(
        key="qiu2023oft",
        title="Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        authors="Qiu, Zeju and Liu, Weiyang and Feng, Haiwen and Xue, Yuxuan and Feng, Yao and "
        "Liu, Zhen and Zhang, Dan and Weller, Adrian and Schölkopf, Bernhard",
        year=2023,
        venue=NEURIPS,
        arxiv="2306.07280",
    ),
    "boft": Paper(
        key="liu2024boft",
        title="Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        authors="Liu, Weiyang and Qiu, Zeju and Feng, Yao and Xiu, Yuliang and Xue, Yuxuan and Yu, "
        "Longhui and Feng, Haiwen and Liu, Zhen and Heo, Juyeon and Peng, Songyou and Wen, Yandong "
        "and Black, Michael J. and Weller, Adrian and Schölkopf, Bernhard",
        year=2024,
        venue=ICLR,
        arxiv="2311.06243",
    ),
    "fourierft": Paper(
        key="gao2024fourierft",
        title="Parameter-Efficient Fine-Tuning with Discrete Fourier Transform",
        authors="Gao, Ziqi and Wang, Qichao and Chen, Aochuan and Liu, Zijing and Wu, Bingzhe and "
        "Chen, Liang and Li, Jia",
        year=2024,
        venue=ICML,
        arxiv="2405.03003",
    ),
    "hra": Paper(
        key="yuan2024hra",
        title="Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder "
        "Reflection Adaptation",
        authors="Yuan, Shen and Liu, Haotian and Xu, Hongteng",
        year=2024,
        venue=NEURIPS,
        arxiv="2405.17484",
    ),
}

RATES = {
    "lora": LoRA.learning_rate,
    "dora": LoRA.learning_rate,
    "rslora": LoRA.learning_rate,
    **dict.fromkeys(("eva", "corda", "lora_ga"), LoRA.learning_rate),
    "adalora": LoRA.learning_rate,
    "ia3": IA3.learning_rate,
    "ln_tuning": NormTuning.learning_rate,
    "prefix_tuning": PrefixTuning.learning_rate,
    "prompt_tuning": PromptTuning.learning_rate,
    "vera": 1e-2,
}
"""Learning rates: where the method is one of ours, ours; vectors take more than matrices."""
USUAL_RATE = 1e-3
