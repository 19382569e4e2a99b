"""Table 1 from the flags of test_id.py: identity accuracy of portraits that are drawn, or of pictures that exist (section 4.2)."""

import argparse

from ldm.data.identities import GROUPS, read_people
from ldm.device import pick_device, pick_precision
from ldm.evaluation.faces import FaceAnalyzer
from ldm.evaluation.id_acc import Row, load_gallery
from ldm.evaluation.portraits import IdentityTable, portraits_in
from ldm.left_out import LeftOut
from ldm.sharing import Devices, OneDevice
from ldm.util import UserError


def identity_table(args: argparse.Namespace) -> list[Row]:
    """Rows of the people asked for, a row for each group and prefix; pictures, CSV files and grid in --out_dir.

    Returns:
        No rows but on the first of the devices that share the work.

    Raises:
        UserError: a file is not what it should be, or --images shows nobody of the people asked for.
    """
    people = people_asked_for(args)
    if args.images:
        return score_pictures(args, people)
    from ldm.apl.launch import launch  # pictures that exist need no diffusion model

    return draw_and_score(args, people, launch(args.devices, num_nodes=args.num_nodes))


def people_asked_for(args: argparse.Namespace) -> dict[str, list[str]]:
    """Group -> the first --n_names names of it."""
    people = read_people(args.people).values()
    groups = GROUPS if args.group == "all" else (args.group,)
    return {group: [person.name for person in people if person.group == group][:args.n_names] for group in groups}


def draw_and_score(args: argparse.Namespace, people: dict[str, list[str]], fabric: Devices) -> list[Row]:
    """Rows of portraits that the model draws, without a prefix and with each --embedding; then rows of drift for --drift_prompts."""
    # Imported here because pictures that exist need no diffusion model.
    from ldm.apl.launch import set_precision
    from ldm.data.benchmarks import different_prompts
    from ldm.evaluation.clip_score import ClipScorer, clip_model_of
    from ldm.experiments.drift import drift_table
    from ldm.experiments.identity import Drawing, identity_rows, load_prefixes
    from ldm.loading import ModelFiles, file_hash

    gallery = load_gallery(args.gallery, [name for names in people.values() for name in names])
    prompts = {path.stem: different_prompts(path) for path in args.drift_prompts or ()}
    device, precision = fabric.device, pick_precision(args.precision, fabric.device)
    analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(device))
    files = ModelFiles.of(args)
    model = files.load(device)
    set_precision(model, precision)
    prefixes = load_prefixes(model, args.embedding or [], files)
    clip = ClipScorer(clip_model_of(args.clip, None), args.clip, device) if args.clip else None
    attributes = {person.name: person.attributes for person in read_people(args.people).values()}
    hashes = files.hash(), file_hash(args.config_path)
    drawing = Drawing(*hashes, args.prompt, args.seed, args.scale, args.ddim_steps, precision)
    rows = identity_rows(fabric, model, analyzer, gallery, people, prefixes, model_name=files.name, drawing=drawing,
                         n_samples=args.n_samples, batch_size=args.batch_size, threshold=args.threshold,
                         out_dir=args.out_dir, resume=args.resume, arguments=vars(args),
                         attributes=attributes if args.c2 else None, features_of=clip.image_features if clip else None)
    rows += drift_table(fabric, model, prompts, prefixes, model_name=files.name, recognise=clip.recognise if clip else None,
                        ddim_steps=args.ddim_steps, scale=args.scale, seed=args.seed, batch_size=args.batch_size)
    return rows if fabric.is_global_zero else []


def score_pictures(args: argparse.Namespace, people: dict[str, list[str]]) -> list[Row]:
    """Rows of the pictures in --images, of which nothing says how they were made."""
    left_out = LeftOut(strict=True)
    portraits = portraits_in(args.images, list(read_people(args.people)), left_out)
    shown = {group: [name for name in names if name in portraits] for group, names in people.items()}
    if not any(shown.values()):
        raise UserError(f"{args.images} shows nobody of the people asked for; give another --group or --n_names")
    gallery = load_gallery(args.gallery, [name for names in shown.values() for name in names])
    analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(pick_device(args.devices)))
    table = IdentityTable(OneDevice(), analyzer, gallery, args.threshold, args.out_dir)
    for group, names in shown.items():
        if names:
            table.add({name: portraits[name] for name in names}, model=str(args.images), prefix="unknown", group=group)
    table.write_details()
    left_out.announce(args.out_dir)
    return table.rows
