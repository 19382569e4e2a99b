"""Create the paper's datasets (section 4.1): attributes and images of S_ID, the gallery of reference faces, and S_Reg.

    python dataset_generation.py attributes --names names.txt                      # prints requests for any assistant
    python dataset_generation.py attributes --names names.txt --answers reply.txt  # reads its answer
    python dataset_generation.py faces --preset mini
    python dataset_generation.py gallery --preset mini --photos runs/faces
    python dataset_generation.py captions --preset sd-v1-5 --images laion_shards --out_dir data/caption_images

Each writes its results and settings to --out_dir. The same command resumes an interrupted run.
"""

import argparse
import os
from dataclasses import asdict

from args.common import options_of
from args.dataset_generation_args import parse_dataset_generation_args
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_dataset_generation_args(argv)
    {"attributes": attributes, "faces": faces, "gallery": gallery, "captions": captions}[args.command](args)


def attributes(args: argparse.Namespace) -> None:
    """Create c2 of S_ID, "A [gender] [race] [occupation], [facial attributes]"."""
    from ldm.data.attribute_sentences import AttributeBook, read_names
    from ldm.data.chat_endpoint import ChatEndpoint

    book = AttributeBook(args.out_dir, args.group, *read_names(args.names))
    book.take_files(args.answers or [])
    if args.base_url:
        endpoint = ChatEndpoint(args.base_url, args.model, os.environ.get(args.api_key_env), seed=args.seed + len(book.answers))
        book.ask(endpoint, args.names_per_request, base_url=args.base_url, model=args.model, seed=endpoint.seed)
    finished = args.base_url or args.answers or not book.missing
    print(book.report() if finished else "\n\n----\n\n".join(book.requests(args.names_per_request)))


def faces(args: argparse.Namespace) -> None:
    """Generate the images x^i of S_ID with the frozen model from the names."""
    from ldm.apl.launch import launch, set_precision
    from ldm.data.benchmarks import read_templates
    from ldm.data.identities import GROUPS, read_people
    from ldm.device import pick_precision
    from ldm.evaluation.faces import FaceAnalyzer
    from ldm.experiments.identity_images import IdentityImages, Recipe
    from ldm.loading import ModelFiles, file_hash
    from ldm.run_folder import RunFolder

    groups = GROUPS if args.group == "all" else (args.group,)
    names = [person.name for person in read_people(args.people).values() if person.group in groups][:args.n_names]
    fabric = launch(args.devices, num_nodes=args.num_nodes)
    analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(fabric.device)) if args.one_face else None
    files = options_of(ModelFiles, args)
    templates, config_hash = read_templates(args.templates), file_hash(args.config_path)
    recipe = options_of(Recipe, args, model_hash=files.hash(), config_hash=config_hash, templates=templates,
                        precision=pick_precision(args.precision, fabric.device), faces_by=analyzer and analyzer.fingerprint())
    folder = RunFolder.shared(fabric, args.out_dir, asdict(recipe), {"none": None}, resume=args.resume, arguments=vars(args))
    model = files.load(fabric.device)
    set_precision(model, recipe.precision)
    images = IdentityImages(fabric, model, folder, names, recipe, n_samples=args.n_samples, batch_size=args.batch_size,
                            count_faces=analyzer and analyzer.count)
    summary = images.generate(args.max_redraws)
    if fabric.is_global_zero:
        print(f"{args.out_dir} holds {summary}")


def gallery(args: argparse.Namespace) -> None:
    """Create the gallery: the reference face of each person, to which ID-ACC compares."""
    from ldm.data.identities import read_people
    from ldm.device import pick_device
    from ldm.evaluation.faces import FaceAnalyzer
    from ldm.evaluation.gallery import make_gallery, person_folders, read_classes
    from ldm.left_out import LeftOut

    names = list(read_people(args.people)) if args.people else []
    left_out = LeftOut()
    people = person_folders(args.photos, names, read_classes(args.identity_meta) if args.identity_meta else None, left_out)
    analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(pick_device(args.devices)))
    print(make_gallery(people, analyzer, args.out_dir, max_photos=args.max_photos, photos=args.photos,
                       onto=args.onto, keep_doubtful=args.keep_doubtful, names=names, arguments=vars(args)))
    left_out.announce(args.out_dir)


def captions(args: argparse.Namespace) -> None:
    """Create S_Reg: captioned images whose generation the prefix must preserve."""
    from ldm.data.caption_sources import caption_candidates
    from ldm.data.captions import write_caption_set
    from ldm.data.identities import read_people
    from ldm.left_out import LeftOut
    from ldm.loading import file_hash
    from ldm.run_folder import RunFolder

    people, dropped = read_people(args.people) if args.people else {}, LeftOut()
    total, candidates = caption_candidates(args.images, args.captions, dropped, args.out_dir / "hashes.json")
    settings = {"min_size": args.min_size, "captions": args.captions and file_hash(args.captions),
                "people": args.people and file_hash(args.people)}
    RunFolder(args.out_dir, settings, resume=args.resume).write_arguments(vars(args))
    kept = write_caption_set(candidates, args.out_dir, people, min_size=args.min_size, max_images=args.max_images, total=total,
                             dropped=dropped)
    print(f"{args.out_dir} holds {kept} images with captions; left out: {dropped} (see dropped.csv there)")


if __name__ == "__main__":
    main()
