"""Small trees in the formats of the datasets, with invented names and numbers; files that nobody opens hold "x"."""

import json
from pathlib import Path

BBR = (
    "Settle,Legs crossed,Groom,Hand-mouth,Fold arms,Leg movement,Scratch,Gesture,Hand-face,Adjusting clothing,Fumble,"
    "Shrug,Stretching,Smearing hands"
)
DRIVE = "participant_id,file_id,annotation_id,frame_start,frame_end,activity,chunk_id\n"


def put(root: Path, files: dict[str, str]) -> Path:
    """Write text files below root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def interval_json() -> str:
    """MPII-GI intervals of two videos, one behaviour annotated twice, ends past the declared duration."""
    return json.dumps(
        {
            "recording07_subjectPos2.video": {
                "subset": "Validation",
                "duration": 3.5,
                "annotations": [
                    {"label": "Hand-Face", "segment": [1.1, 2.2], "label_id": 0},
                    {"label": "Hand-face", "segment": [1.1, 2.2], "label_id": 0},
                    {"label": "Gesture", "segment": [1.1, 2.5], "label_id": 9},
                    {"label": "gesture", "segment": [3, 4], "label_id": 9},
                ],
            },
            "recording08_subjectPos1.video": {
                "subset": "Test",
                "annotations": [{"label": "Relax", "segment": [0, 0.05]}],
            },
        }
    )


# Dataset -> a tree that imports; hypothesis damages the texts.
TREES: dict[str, dict[str, str]] = {
    "mpii_gi": {
        "intervals.json": interval_json(),
        "data/recording07/subjectPos2.video.avi": "x",
        "data/recording07/subjectPos2.video1.avi": "x",
        "data/recording08/subjectPos1.video.avi": "x",
    },
    "mpii_bbr": {
        "sample_lists/train_bbr.csv": (
            f"sample_id,rec_no,subject_pos,start_time,end_time,{BBR}\n"
            f"42,7,2,3000.0,5133.33,{','.join('10000001000000')}\n"
            f"44,7,3,3000.0,5133.33,{','.join('0' * 14)}\n"
        ),
        "sample_lists/val_bbr.csv": (
            f"sample_id,rec_no,subject_pos,start_time,end_time,{BBR}\n7,8,1,3000.0,5133.33,{','.join('0' * 13 + '1')}\n"
        ),
        "sample_lists/test_bbr.csv": "sample_id,rec_no,subject_pos,start_time,end_time\n1,29,1,3000.0,5133.33\n",
        "clips_train/clips_train/00042-video.mp4": "x",
    },
    "social_gesture": {
        "train.csv": (
            "file_name,start_time,end_time,gesture,initiator_bbox,target_bbox\n"
            'one.mp4,1,3,pointing,"[10, 20, 100, 200]","[[5, 1, 2, 3, 4], [10, 2, 3, 4, 5]]"\n'
            'one.mp4,1,3,Giving,"[[4, 0, 0, 9, 9], [6, 1, 1, 9, 9], [99, 1, 1, 9, 9]]",\n'
        ),
        "test.csv": "file_name,start_time,end_time,gesture,initiator_bbox\ntwo.mp4,0,2,showing,1 2 3 4\n",
    },
    "imigue": {
        "imigue_skeleton_train/0001/0001_label.csv": "99,10,20\n3,30,40\n",
        "imigue_skeleton_train/0001/0001_light_hand.csv": "0,1,1,1\n",
        "imigue_rgb_phase1/train_data/0001/0001.mp4": "x",
        "imigue_skeleton_validate/0002/0002_label.csv": "1,5,5\n",
        "imigue_skeleton_validate/0002/0002_light.csv": "0,1,1,1\n",
        "imigue_rgb_phase2/test_data/0003/0003.mp4": "x",
    },
    "smg": {
        "Sample0001/Sample0001_finelabels.csv": "1,10,20\n",
        "Sample0001/Sample0001_skeleton.csv": "0\n",
        "Sample0001/any name.mp4": "x",
        "Sample0001/Sample0001_data.csv": "20000,29,8000\n",
        "deeper/Sample0036/Sample0036_finelabels.csv": "17,30,40\r\n",
        "deeper/Sample0036/Sample0036_skeleton.csv": "0\n",
    },
    "drive_and_act": {
        "activities_3s/kinect_color/midlevel.chunks_90.split_0.train.csv": (
            f'{DRIVE}1,vp1/run1_a.kinect_color,3,10,55,"looking_or_moving_around (e.g. searching)",0\n'
            "1,vp1/run1_a.kinect_color,3,55,57,eating,1\n"
        ),
        "activities_3s/kinect_color/midlevel.chunks_90.split_0.test.csv": (
            f"{DRIVE}5,vp5/run1_b.kinect_color,0,0,45,writing,0\n"
        ),
        "activities_3s/inner_mirror/midlevel.chunks_90.split_0.train.csv": (
            f"{DRIVE}1,vp1/run1_a.ids_1,3,20,110,eating,1\n"
        ),
    },
    "ntu60": {
        "rgb/S001C001P001R001A001_rgb.avi": "x",
        "skeletons/S001C001P001R001A001.skeleton": "x",
        "skeletons/S002C002P003R001A060.skeleton": "x",
        "skeletons/S003C003P003R002A005.skeleton": "x",
        "skeletons/S018C001P003R001A061.skeleton": "x",
        "NTU_RGBD_samples_with_missing_skeletons.txt": "S003C003P003R002A005\n",
    },
    "pku_mmd": {
        "Split/cross-subject.txt": "Training videos:\n0002-L, 0002-M\nValidation videos:\n0003-R\n",
        "Split/cross-view.txt": "Training videos:\n0002-M, 0003-R\nValidation videos:\n0002-L\n",
        "labels/0002-L.txt": "5,10,30,2\n51,40,41,1\n",
        "skeletons/0002-L.txt": f"{'0.5 ' * 150}\n",
        "labels/0003-R.label": "1,0,20,2\n",
        "videos/0003-R.avi": "x",
    },
    "n_ucla": {
        "all_sqe/a01_s01_e00_v01.json": "{}",
        "all_sqe/a12_s02_e01_v03.json": "{}",
    },
    "kinetics": {
        "train.csv": "label,youtube_id,time_start,time_end,split\nyoga,-ab_1,10,20,train\nyoga,gone,10,20,train\n",
        "val.csv": "youtube_id,time_start,time_end\nqq,0,10\n",
        "train/yoga/-ab_1_000010_000020.mp4": "x",
        "val/qq_000000_000010.mkv": "x",
    },
    "activitynet": {
        "all.json": json.dumps(
            {
                "database": {
                    "v1": {"subset": "training", "annotations": [{"label": "x", "segment": [1.5, 4.0]}]},
                    "v2": {"subset": "testing"},
                }
            }
        ),
        "videos/v1.mkv": "x",
    },
}
OPTIONS = {"activitynet": ["fps=25"]}
