"""Run by a Python that has Blender's `bpy`: imports FILE.bvh and saves where its joints are.

usage: python blender_import.py FILE.bvh OUT.npy NAMES, with names of bones, "NAME end" for tails

OUT.npy is (frames, names, 3) in Blender's axes: x as in the file, y = -z, z = y.
"""

import sys

import bpy
import numpy as np

path, out, names = sys.argv[1:]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.preferences.addon_enable(module="io_anim_bvh")
bpy.ops.import_anim.bvh(
    filepath=path, axis_forward="-Z", axis_up="Y", update_scene_fps=True, update_scene_duration=True
)
armature, scene = bpy.context.object, bpy.context.scene
frames = int(armature.animation_data.action.frame_range[1])
positions = np.empty((frames, len(names.split(",")), 3))
for t in range(frames):
    scene.frame_set(t + 1)
    for i, name in enumerate(names.split(",")):
        bone = armature.pose.bones[name.removesuffix(" end")]
        place = bone.tail if name.endswith(" end") else bone.head
        positions[t, i] = armature.matrix_world @ place
np.save(out, positions)
print(f"{scene.render.fps} frames per second")
