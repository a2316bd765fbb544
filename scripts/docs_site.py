"""A hook of mkdocs (mkdocs.yml): adds the pages of the site that are not in docs/, and makes links between them work.

Added are README.md as the first page, CONTRIBUTING.md, CHANGELOG.md, SECURITY.md, the tables of benchmarks/, and an API
reference with a page per folder. A link from docs/ to another file of the repository leads to a copy of it on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("walt_t5x", "data", "beam_jobs")
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
# A link or image of Markdown: what precedes its target, the target, its anchor.
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)((?:#[^)\s]*)?\))")


def site_path(path: str) -> str:
  """Where a file of the repository is on the site."""
  return "index.md" if path == "README.md" else path.removeprefix("docs/")


def repository_path(path: str) -> str:
  """Where a file of the site is in the repository."""
  if path == "index.md":
    return "README.md"
  return path if path.startswith("benchmarks/") or path in PROJECT_PAGES else f"docs/{path}"


def target(page: str, link: str) -> str:
  """The file of the repository that a link of a page names."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), link))


def api_pages() -> dict[str, str]:
  """The pages of the API reference: path on the site -> Markdown."""
  pages = {}
  for package in PACKAGES:
    folders = sorted({file.parent for file in (ROOT / package).rglob("*.py")})
    for folder in folders:
      name = ".".join(folder.relative_to(ROOT).parts)
      modules = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
      text = [f"# {name}", "", *(f"::: {name}.{module}" for module in modules)]
      pages[f"api/{name}.md"] = "\n".join(text) + "\n"
  return pages


def benchmark_pages() -> list[str]:
  """The tables of benchmarks/, as paths in the repository."""
  return sorted(f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("*.md"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Adds the benchmarks and the API reference to the navigation."""
  config.nav.append({"Benchmarks": benchmark_pages()})
  config.nav.append({"API reference": [{Path(page).stem: page} for page in api_pages()]})
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds pages from outside docs/, and each file that a page links to."""
  for path in ("README.md", *PROJECT_PAGES, *benchmark_pages()):
    text = (ROOT / path).read_text(encoding="utf-8")
    files.append(File.generated(config, site_path(path), content=text))
  for page in list(files.documentation_pages()):
    for _, link, _ in LINK.findall(page.content_string):
      path = target(page.src_uri, link)
      if (ROOT / path).is_file() and files.get_file_from_path(site_path(path)) is None:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
  for path, text in api_pages().items():
    files.append(File.generated(config, path, content=text))
  return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
  """Turns links between files of the repository into links between files of the site."""

  def rewritten(match: re.Match[str]) -> str:
    start, link, end = match.groups()
    path = site_path(target(page.file.src_uri, link))
    return start + posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".") + end

  return LINK.sub(rewritten, markdown)
