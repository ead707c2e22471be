"""What both hosts can report, as their sources list it, and why some of it has no declared headline."""

from __future__ import annotations

# Folders of lmms-eval 0.7.3's tasks by reason. Their numbers are still shown, as they are written.
UNDECLARED = {
    "video": """
        FALCONBench activitynetqa camerabench_vqa cgav_counting cgbench charades_sta cinepile countix cover cuva cvrr
        egoplan egoplan2 egoschema egotaskqa egotempo egothink extremewhenbench funqa hd_epic intphys2 jumpscore
        lemonade longtimescope longvideobench longvt lsdbench lvbench minerva mlvu mmr_v mmsi_video mmvu mmworld
        motionbench moviechat mvbench mvp neptune nextqa ovobench ovr_kinetics paibench_u perceptiontest
        plm_videobench pushupbench repcount revsi rvos scivideobench ssv2 tempcompass temporalbench timelens timescope
        tomato tvbench vatex vcrbench vdc video-tt video_detail_description video_holmes videochatgpt videoevalpro
        videomathqa videomme videomme_v2 videommmu videonet vinoground vitatecs vrbench vsibench vsisuper vstat
        worldqa worldsense youcook2 physical_ai_understanding vantage_vqa vpct""",
    "sound": """
        air_bench alpaca_audio ami av_asr av_odyssey av_speakerbench clotho_aqa cn_college_listen_mcq common_voice_15
        covost2 dream_tts_mcq europal_asr fleurs gigaspeech librispeech mmar mmau mmou mmsu muchomusic omni_bench
        open_asr openhermes openslr_librispeech people_speech song_describer step2_audio_paralinguistic tedlium
        vggsound vocalsound voicebench voxpopuli wavcaps wenet_speech xmod_bench""",
    "text alone": """
        aime arc gpqa gsm8k hellaswag ifeval mmlu mmlu_pro openai_math scibench super_gpqa csbench medqa k12
        mix_evals""",
    "making or editing images": """
        WISE babyvision_gen gedit_bench imgedit kris_bench structeditbench ueval uni_mmmu unig2u vbench vbvr""",
    "agents and tools": """
        browsecomp c4_bench mle_bench mmsearch mmsearch_plus osworld_g tau2_bench vending_bench2 arc_agi_1
        arc_agi_2""",
    "places in images": """
        crosspoint_bench ferret groundingme odinw13 pointbench refcoco refcoco+ refcocog refcoco_grounding refspatial
        robo_spatial saco salbench screenspot screenspot_pro screenspot_v2 sunrgbd where2place fsc147
        multihopspatial""",
    "a submission to a server": "ii_bench stvqa benchmark_aliases internal_eval",
    "safety": "holisafe safety_redteam",
    "several numbers, none of them the headline": """
        amber_g auxsolidmath capability captionqa cc_ocr coco_cap_chair detailcaps dynamath hipho jmmmu_pro kaleidoscope
        livexiv_tqa livexiv_vqa live_bench llava_interleave_bench logicvista mdpbench mme_cot mmie mmrefine mmupd
        multilingual-llava-bench-in-the-wild olympiadbench olympiadbench_mimo omnidocbench physical_conflict
        prismm_bench realunify slake spatial457 spatial_dise synthdog vcr_wiki visualwebbench visres_bench wemath
        wild_vision_bench wm_abench""",
    "few people report it with checkpoints": """
        corecognition countbench dtcbench illusionbench mathcanvas mathkangaroo megabench metavqa mia_bench mindcube
        mirb mme_cc mme_sci mme_sci_image mmlongbench multi_crit multimodal_rewardbench officeqa omnispatial openxvqa
        osi_bench perceptioncomp sis_bench sitebench snsbench sparbench spatialtreebench spatialviz vibe_eval
        visfactor viverbench xlrs""",
}
# The image data sets of the OpenVLM leaderboard, as VLMEvalKit e8e78f05 calls them: the core eight, then the others.
OPENVLM = """
    MMBench_DEV_EN_V11 MMStar MMMU_DEV_VAL MathVista_MINI HallusionBench AI2D_TEST OCRBench MMVet"""
OPENVLM_OTHERS = """
    SEEDBench_IMG SEEDBench2 SEEDBench2_Plus MMT-Bench_VAL ScienceQA_VAL ScienceQA_TEST MME RealWorldQA POPE CCBench
    LLaVABench COCO_VAL OCRVQA_TESTCORE TextVQA_VAL ChartQA_TEST DocVQA_VAL InfoVQA_VAL MathVision
    MathVerse_MINI_Vision_Only LogicVista BLINK Q-Bench1_VAL A-Bench_VAL MTVQA_TEST MMMU_Pro_10c MMMU_Pro_V CMMMU_VAL
    MMBench_DEV_EN MMBench_DEV_CN MMBench_DEV_CN_V11 MMVP VStarBench MUIRBench CV-Bench-2D CV-Bench-3D HRBench4K
    HRBench8K NaturalBenchDataset VMCBench_DEV CRPE_RELATION CharXiv_reasoning_val CharXiv_descriptive_val CountBenchQA
    VizWiz GQA_TestDev_Balanced A-OKVQA ERQA AI2D_TEST_NO_MASK MicroVQA"""
