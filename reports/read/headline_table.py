"""Which number of which benchmark counts: the declared table of headline fields, scales and column names.

Scales were read in lmms-eval 0.7.3 and VLMEvalKit e8e78f05; the recorded trees under tests/golden hold them. A test
holds the tasks and metrics against lmms-eval's own task files.
"""

from __future__ import annotations

from collections.abc import Sequence

from mir_plugin.reports.read.benchmarks import (
    AVERAGE_SETS,
    FRACTION,
    LMMS_EVAL,
    OWN_AVERAGE,
    PERCENT,
    POINTS,
    VLMEVALKIT,
    Benchmark,
    Headline,
)

TRAINING_LOSS = "train_loss"


def _lmms(tasks: str, metric: str, factor: float = FRACTION) -> Headline:
    return Headline(LMMS_EVAL, tuple(tasks.split()), metric, factor)


def _vlm(tasks: str, metric: str = "*|Overall", factor: float = PERCENT) -> Headline:
    return Headline(VLMEVALKIT, tuple(tasks.split()), metric, factor)


def _choices(tasks: str, split: str = "*") -> tuple[Headline, ...]:
    """Of VLMEvalKit's multiple-choice sets: fractions, or percent in the other layout that a verifier writes."""
    return _vlm(tasks, f"{split}|Overall", FRACTION), _vlm(tasks, "Overall|Accuracy")


def _percent(key: str, name: str, headlines: Sequence[Headline], *columns: str, averaged: bool = True) -> Benchmark:
    return Benchmark(key, name, tuple(headlines), columns, averaged=averaged)


def _captions(key: str, name: str, task: str, metric: str) -> Benchmark:
    """CIDEr × 100 has no upper end, so it is no percentage."""
    return Benchmark(key, name, (_lmms(task, metric),), unit="points", averaged=False)


BENCHMARKS: tuple[Benchmark, ...] = (
    _percent("mmstar", "MMStar", [_lmms("mmstar", "average"), *_choices("MMStar")]),
    Benchmark(
        "mme",
        "MME",
        (
            _lmms("mme", "mme_perception_score", POINTS),
            _lmms("mme", "mme_percetion_score", POINTS),  # spelt so before November 2024
            _vlm("MME", "*|perception"),
        ),
        ("MME-P", "MME perception"),
        unit="points",
        to_percent=1 / 20,
        points=2000.0,
    ),
    Benchmark(
        "mme_cognition",
        "MME-C",
        (_lmms("mme", "mme_cognition_score", POINTS), _vlm("MME", "*|reasoning")),
        ("MME cognition", "MME reasoning"),
        unit="points",
        averaged=False,
        points=800.0,
    ),
    Benchmark(
        "mme_total",
        "MME total",
        columns=("MME sum", "MME-Sum", "MME P+C", "MME overall"),
        unit="points",
        averaged=False,
        points=2800.0,
    ),
    _percent(
        "mmbench",
        "MMBench",
        [
            _lmms("mmbench_en_dev mmbench_en_dev_static", "gpt_eval_score", PERCENT),
            _vlm("MMBench_DEV_EN MMBench", "dev|Overall", FRACTION),
        ],
        "MMB",
        "MMBench-EN",
        "MMB-EN",
        "MMBench-Dev",
        "MMBench EN dev",
        "MMBench_DEV_EN",
    ),
    _percent(
        "mmbench_v11",
        "MMBench v1.1",
        [_vlm("MMBench_DEV_EN_V11 MMBench_V11", "dev|Overall", FRACTION)],
        "MMBench_V11",
        "MMB v1.1",
    ),
    _percent(
        "mmbench_cn",
        "MMBench-CN",
        [
            _lmms("mmbench_cn_dev", "gpt_eval_score", PERCENT),
            _vlm("MMBench_DEV_CN MMBench_CN", "dev|Overall", FRACTION),
        ],
        "MMB_CN",
        "MMBench CN dev",
        "MMBench_DEV_CN",
    ),
    _percent(
        "mmbench_cn_v11",
        "MMBench-CN v1.1",
        [_vlm("MMBench_DEV_CN_V11 MMBench_CN_V11", "dev|Overall", FRACTION)],
        "MMBench_CN_V11",
    ),
    _percent("mmbench_cc", "MMBench-CC", [_lmms("mmbench_cn_cc", "gpt_eval_score", PERCENT)]),
    _percent(
        "seed_image",
        "SEED-Image",
        [_lmms("seedbench", "seed_image"), *_choices("SEEDBench_IMG")],
        "SEED_I",
        "SEED",
        "SEED-IMG",
        "SEEDBench_IMG",
        "SEED-Bench-Image",
    ),
    _percent("seed_all", "SEED-Bench", [_lmms("seedbench", "seed_all")], "SEED-All"),
    _percent(
        "seed2_plus",
        "SEED-Bench-2-Plus",
        [_lmms("seedbench_2_plus", "seedbench_2_plus_all"), *_choices("SEEDBench2_Plus")],
    ),
    _percent("seed2", "SEED-Bench-2", [_lmms("seedbench_2", "seed_all"), *_choices("SEEDBench2")]),
    _percent(
        "textvqa", "TextVQA", [_lmms("textvqa_val", "exact_match"), _vlm("TextVQA_VAL")], "TQA", "VQA-T", "TextVQA-val"
    ),
    _percent(
        "scienceqa_image",
        "ScienceQA-Image",
        [_lmms("scienceqa_img", "exact_match"), *_choices("ScienceQA_TEST")],
        "SQA_I",
        "SQA",
        "SQA-IMG",
        "ScienceQA",
        "ScienceQA-IMG",
    ),
    _percent("scienceqa_val", "ScienceQA (val)", _choices("ScienceQA_VAL")),
    _percent("scienceqa_full", "ScienceQA (with text)", [_lmms("scienceqa", "exact_match")]),
    _percent("pope", "POPE", [_lmms("pope", "pope_f1_score"), _vlm("POPE", "Overall|Overall")], "POPE F1"),
    _percent("gqa", "GQA", [_lmms("gqa", "exact_match"), _vlm("GQA_TestDev_Balanced")]),
    _percent("mmvet", "MM-Vet", [_lmms("mmvet", "gpt_eval_score", PERCENT), _vlm("MMVet", "Overall|acc")], "MM_Vet"),
    _percent(
        "mmmu",
        "MMMU",
        [_lmms("mmmu_val", "mmmu_acc"), *_choices("MMMU_DEV_VAL", "validation")],
        "MMMU-val",
        "MMMU (val)",
        "MMMU_DEV_VAL",
    ),
    _percent("mmmu_pro", "MMMU-Pro", [_lmms("mmmu_pro_standard", "mmmu_acc"), *_choices("MMMU_Pro_10c")]),
    _percent("mmmu_pro_vision", "MMMU-Pro (vision)", [_lmms("mmmu_pro_vision", "mmmu_acc"), *_choices("MMMU_Pro_V")]),
    _percent("cmmmu", "CMMMU", [_lmms("cmmmu_val", "cmmmu_acc"), _vlm("CMMMU_VAL")]),
    _percent(
        "mathvista",
        "MathVista",
        [
            _lmms(
                "mathvista_testmini_format mathvista_testmini_cot mathvista_testmini_solution",
                "llm_as_judge_eval",
                PERCENT,
            ),
            _vlm("MathVista_MINI", "Overall|acc"),
        ],
        "MathVista-mini",
        "MathVista_MINI",
        "MathVista testmini",
    ),
    _percent(
        "mathvision",
        "MathVision",
        [_lmms("mathvision_test", "mathvision_standard_eval", PERCENT), _vlm("MathVision", "Overall|acc")],
    ),
    _percent(
        "mathvision_mini",
        "MathVision (mini)",
        [
            _lmms("mathvision_testmini", "mathvision_standard_eval", PERCENT),
            _vlm("MathVision_MINI", "Overall|acc"),
        ],
    ),
    _percent(
        "hallusionbench",
        "HallusionBench",
        [
            _lmms("hallusion_bench_image", "aAcc + fAcc + qAcc", PERCENT),
            _vlm("HallusionBench", "Overall|aAcc + Overall|fAcc + Overall|qAcc"),
        ],
        "Hallusion",
    ),
    _percent("ai2d", "AI2D", [_lmms("ai2d", "exact_match"), *_choices("AI2D_TEST")], "AI2D_TEST"),
    _percent(
        "ai2d_no_mask",
        "AI2D (no mask)",
        [_lmms("ai2d_no_mask", "exact_match"), *_choices("AI2D_TEST_NO_MASK")],
    ),
    _percent(
        "ocrbench",
        "OCRBench",
        [_lmms("ocrbench", "ocrbench_accuracy"), _vlm("OCRBench", "none|Final Score Norm")],
    ),
    _percent("ocrbench_v2", "OCRBench v2", [_lmms("ocrbench_v2", "ocrbench_v2_accuracy")]),
    _percent("realworldqa", "RealWorldQA", [_lmms("realworldqa", "exact_match"), *_choices("RealWorldQA")], "RWQA"),
    _percent("chartqa", "ChartQA", [_lmms("chartqa", "relaxed_overall"), _vlm("ChartQA_TEST")]),
    _percent("docvqa", "DocVQA", [_lmms("docvqa_val", "anls"), _vlm("DocVQA_VAL", "*|val")], "DocVQA-val"),
    _percent("infovqa", "InfoVQA", [_lmms("infovqa_val", "anls"), _vlm("InfoVQA_VAL", "*|val")], "InfoVQA-val"),
    _percent(
        "llava_wild",
        "LLaVA-Wild",
        [
            _lmms("llava_in_the_wild", "gpt_eval_llava_all", PERCENT),
            _vlm("LLaVABench", "overall|Relative Score (main)"),
        ],
        "LLaVA-W",
        "LLaVA-Bench",
        "LLaVABench",
        "LLaVA-in-the-Wild",
        "LLaVA-Bench (in the wild)",
    ),
    _percent("vizwiz", "VizWiz", [_lmms("vizwiz_vqa_val", "exact_match"), _vlm("VizWiz")], "VisWiz"),
    _percent("vqav2", "VQAv2", [_lmms("vqav2_val", "exact_match")]),
    _percent("okvqa", "OK-VQA", [_lmms("ok_vqa_val2014", "exact_match")]),
    _percent("mmvp", "MMVP", [_lmms("mmvp", "mmvp_pair_accuracy")]),
    _percent("cv_bench", "CV-Bench", [_lmms("cv_bench", "cv_bench_acc")]),
    _percent(
        "vstar",
        "V* Bench",
        [_lmms("vstar_bench", "vstar_overall_acc", PERCENT), *_choices("VStarBench")],
        "VStarBench",
    ),
    _percent("blink", "BLINK", [_lmms("blink", "blink_acc"), *_choices("BLINK")]),
    _percent("mmt", "MMT-Bench", [_lmms("mmt_val", "accuracy", PERCENT), *_choices("MMT-Bench_VAL")]),
    _percent("muirbench", "MuirBench", [_lmms("muirbench", "muirbench_score_overall"), *_choices("MUIRBench")]),
    _percent("mme_realworld", "MME-RealWorld", [_lmms("mmerealworld", "mme_realworld_score")]),
    _percent(
        "charxiv",
        "CharXiv (reasoning)",
        [_lmms("charxiv_val_reasoning", "reasoning_acc"), _vlm("CharXiv_reasoning_val", factor=FRACTION)],
    ),
    _percent(
        "charxiv_descriptive",
        "CharXiv (descriptive)",
        [_lmms("charxiv_val_descriptive", "descriptive_acc"), _vlm("CharXiv_descriptive_val", factor=FRACTION)],
    ),
    _percent("vlms_are_blind", "VLMs are blind", [_lmms("vlmsareblind", "accuracy")]),
    _percent("countbench", "CountBenchQA", [_lmms("countbenchqa", "acc"), _vlm("CountBenchQA", "none|accuracy")]),
    _percent("ccbench", "CCBench", _choices("CCBench")),
    _percent("mmvet_v2", "MM-Vet v2", [_lmms("mmvetv2", "gpt_eval_score", PERCENT)]),
    _percent("mmvp_questions", "MMVP (single questions)", _choices("MMVP")),
    _percent("cv_bench_2d", "CV-Bench 2D", [_lmms("cv_bench_2d", "cv_bench_acc"), *_choices("CV-Bench-2D")]),
    _percent("cv_bench_3d", "CV-Bench 3D", [_lmms("cv_bench_3d", "cv_bench_acc"), *_choices("CV-Bench-3D")]),
    _percent("aokvqa", "A-OKVQA", _choices("A-OKVQA")),
    _percent("ocrvqa", "OCR-VQA", [_vlm("OCRVQA_TESTCORE")]),
    _percent(
        "mathverse",
        "MathVerse (vision only)",
        [
            _lmms("mathverse_testmini_vision_only", "gpt_eval_score"),
            _vlm("MathVerse_MINI_Vision_Only"),
        ],
    ),
    _percent("mathverse_mini", "MathVerse (mini)", [_lmms("mathverse_testmini", "gpt_eval_score")]),
    _percent("logicvista", "LogicVista", [_vlm("LogicVista", "Overall|acc")]),
    _percent("visulogic", "VisuLogic", [_lmms("visulogic", "visulogic_acc")]),
    _percent("visualpuzzles", "VisualPuzzles", [_lmms("VisualPuzzles_direct", "exact_match")]),
    _percent("phyx_mini", "PhyX (mini, choices)", [_lmms("phyx_mini_mc", "eval_results")]),
    _percent("seephys", "SeePhys", [_lmms("seephys", "eval_results")]),
    _percent("emma", "EMMA", [_lmms("emma", "emma_score")]),
    _percent("geometry3k", "Geometry3K", [_lmms("geometry3k", "exact_match")]),
    _percent("erqa", "ERQA", [_lmms("erqa", "erqa_acc"), _vlm("ERQA", "Overall|Accuracy (%)")]),
    _percent("embspatial", "EmbSpatial-Bench", [_lmms("embspatial", "embspatial_acc")]),
    _percent("viewspatial", "ViewSpatial-Bench", [_lmms("viewspatial", "overall_accuracy")]),
    _percent("omnispatial", "OmniSpatial", [_lmms("omni_spatial", "omni_spatial_score")]),
    _percent("mmsi", "MMSI-Bench", [_lmms("mmsi_bench", "average")]),
    _percent("sat", "SAT", [_lmms("sat", "exact_match")]),
    _percent("stare", "STARE", [_lmms("stare_full", "stare_score")]),
    _percent("3dsrbench", "3DSRBench", [_lmms("3dsrbench", "vanilla_accuracy")]),
    _percent(
        "hrbench_4k",
        "HR-Bench 4K",
        [_lmms("hrbench4k", "average"), _vlm("HRBench4K", "Average all|accuracy", FRACTION)],
    ),
    _percent(
        "hrbench_8k",
        "HR-Bench 8K",
        [_lmms("hrbench8k", "average"), _vlm("HRBench8K", "Average all|accuracy", FRACTION)],
    ),
    _percent("mme_realworld_lite", "MME-RealWorld-Lite", [_lmms("mmerealworld_lite", "mme_realworld_score")]),
    _percent("mme_realworld_cn", "MME-RealWorld-CN", [_lmms("mmerealworld_cn", "mme_realworld_score")]),
    _percent(
        "naturalbench",
        "NaturalBench (groups)",
        [_lmms("naturalbench", "naturalbench_G_ACC"), _vlm("NaturalBenchDataset", "G_Acc|Score", FRACTION)],
    ),
    _percent("vmcbench", "VMCBench", [_lmms("vmcbench", "average"), _vlm("VMCBench_DEV")]),
    _percent("qbench", "Q-Bench", [_lmms("qbench_dev", "qbench_acc"), *_choices("Q-Bench1_VAL")]),
    _percent("abench", "A-Bench", [_lmms("abench_dev", "abench_acc"), *_choices("A-Bench_VAL")]),
    _percent(
        "crpe_relation",
        "CRPE (relation)",
        [_lmms("crpe_relation", "exact_match"), _vlm("CRPE_RELATION", "none|total", FRACTION)],
    ),
    _percent("illusionvqa", "IllusionVQA", [_lmms("illusionvqa_comprehension", "exact_match")]),
    _percent("vlms_are_biased", "VLMs are biased", [_lmms("vlms_are_biased", "accuracy")]),
    _percent("conbench", "ConBench", [_lmms("ConBench", "ConScore_D")]),
    _percent("chartqapro", "ChartQAPro", [_lmms("chartqapro", "relaxed_overall")]),
    _percent("slidevqa", "SlideVQA", [_lmms("slidevqa_val", "anls")]),
    _percent("dude", "DUDE", [_lmms("dude", "dude_anls")]),
    _percent("mpdocvqa", "MP-DocVQA", [_lmms("multidocvqa_val", "anls")]),
    _percent("mmlongbench_doc", "MMLongBench-Doc", [_lmms("mmlongbench_doc", "mmlongbench_doc_acc")]),
    _percent("websrc", "WebSRC", [_lmms("websrc_val", "websrc_squad_f1")]),
    _percent("iconqa", "IconQA", [_lmms("iconqa_val", "anls")]),
    _percent("mtvqa", "MTVQA", [_lmms("mtvqa", "mtvqa_score", PERCENT), _vlm("MTVQA_TEST", "none|Average")]),
    _percent("jmmmu", "JMMMU", [_lmms("jmmmu", "jmmmu_acc")]),
    _percent("gqa_ru", "GQA-ru", [_lmms("gqa-ru", "exact_match")]),
    _percent("simplevqa", "SimpleVQA", [_lmms("simplevqa", "exact_match")]),
    _percent("worldvqa", "WorldVQA", [_lmms("worldvqa", "exact_match")]),
    _percent("pixmo_count", "PixMo-Count", [_lmms("pixmo_count", "acc")]),
    _percent("mantis", "Mantis-Eval", [_lmms("mantis", "mantis_score")]),
    _percent("zerobench", "ZeroBench", [_lmms("zerobench", "zerobench_exact_match")]),
    _percent("microvqa", "MicroVQA", [_lmms("microvqa", "accuracy"), *_choices("MicroVQA")]),
    _percent("babyvision", "BabyVision", [_lmms("babyvision", "babyvision_overall_accuracy")]),
    _percent("vl_rewardbench", "VL-RewardBench", [_lmms("vl_rewardbench", "vlreward_score")]),
    _percent("llava_wilder", "LLaVA-Wilder (small)", [_lmms("llava_wilder_small", "gpt_eval_llava_all", PERCENT)]),
    _percent("llava_coco", "LLaVA-Bench (COCO)", [_lmms("llava_bench_coco", "gpt_eval_llava_all", PERCENT)]),
    Benchmark(
        "coco_captions_vlmevalkit", "COCO_VAL (CIDEr)", (_vlm("COCO_VAL", "none|CIDEr"),), unit="points", averaged=False
    ),
    _captions("coco_captions", "COCO captions (CIDEr)", "coco2017_cap_val", "coco_CIDEr"),
    _captions("nocaps", "NoCaps (CIDEr)", "nocaps_val", "nocaps_CIDEr"),
    _captions("flickr30k", "Flickr30k (CIDEr)", "flickr30k_test", "flickr_CIDEr"),
    _captions("textcaps", "TextCaps (CIDEr)", "textcaps_val", "textcaps_CIDEr"),
    Benchmark(
        "average_stated",
        "Average (as stated)",
        columns=("Average", "Avg", *(f"Average ({name})" for name in (*AVERAGE_SETS, OWN_AVERAGE))),
        averaged=False,
    ),
    Benchmark(
        TRAINING_LOSS,
        "Training loss",
        columns=("loss", "train_loss"),
        unit="points",
        higher_is_better=False,
        averaged=False,
        decimals=3,
    ),
    # The small benchmark that ships with this package; no part of anybody's average.
    _percent("mir_digits", "Digits", [_lmms("mir_digits", "exact_match")], averaged=False),
)
