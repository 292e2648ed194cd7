"""Chooses the files of the documentation site; mkdocs.yml calls it.

The pages lie where a reader of the repository looks for them: README.md, docs/, and the results
beside the benchmarks. They keep their places on the site, so a link that works in the repository
works there too.
"""

from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
    "kernels/README.md",
    "docs/**/*.md",
    "docs/**/*.png",
    "benchmarks/results/*",
    "configs/**/*.yaml",
)


def on_files(files: Files, config) -> Files:
    """Replaces the files below docs_dir by those of PAGES, addressed from the repository's root."""
    theme = [file for file in files if not file.src_uri.endswith((".md", ".png"))]
    found = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    chosen = [
        File(
            path.relative_to(ROOT).as_posix(),
            str(ROOT),
            config.site_dir,
            config.use_directory_urls,
        )
        for path in found
    ]
    return Files([*theme, *chosen])
