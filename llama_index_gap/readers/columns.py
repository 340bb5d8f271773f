"""The roles of a table's columns: a document's id, title, text, images, captions, metadata."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.cells import is_image_path
from llama_index_gap.text import excerpt


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names as `plain_name` returns them. For ids and titles, the first name here that the table has is
# used. For texts, all are used, in the order of the table, unless it has a column `text`.
ID_NAMES = (
    *("id", "handle", "url_handle", "handle_id", "sku", "item_sku", "product_id", "item_id"),
    *("article_id", "document_id", "doc_id", "parent_asin", "asin", "uniq_id", "uuid", "guid"),
    *("reference", "product_code", "item_code", "article_number"),
)
TITLE_NAMES = (
    *("title", "name", "product_name", "product_title", "product_display_name", "item_name"),
    *("prod_name", "display_name", "headline", "heading", "subject", "post_title", "clean_title"),
)
TEXT_NAMES = (
    *("text", "body", "body_html", "body_text", "content", "description", "short_description"),
    *("long_description", "product_description", "item_description", "detail_desc", "details"),
    *("post_content", "article", "abstract", "summary", "review", "reviews", "review_text"),
    *("review_body", "review_content", "comment", "comments", "message", "features"),
    *("bullet_point", "bullet_points", "tweet", "clean_text", "full_text", "prompt"),
)
CAPTION_NAMES = ("caption", "captions", "alt", "alts", "alt_text", "alt_texts")
FILE_NAMES = ("file_name", "file_names", "filename", "filenames", "file_path", "filepath")
# A column holds images if its name has only these words, and at least one of the first list.
_IMAGE_WORDS = _words(
    "image images img imgs photo photos picture pictures pic pics thumbnail thumbnails"
)
_PLACE_WORDS = _words(
    "path paths file files filename filenames name names src source url urls uri uris link "
    "links href"
)
_WHICH_WORDS = _words(
    "small base main additional other others extra product variant item swatch hosted featured "
    "cover primary secondary gallery media front back default large medium big original full "
    "article post hero local"
)
_CAPTION_WORDS = _words("alt alts text texts caption captions label labels description")
_OWN_IMAGES = ("image", "images")
_RESERVED = frozenset(["id", "text", "embedding", "doc_id", "document_id", "ref_doc_id"])
_LISTED = 20
OPTIONS = (
    "name them with text_field=, image_field=, id_field= (--text-field, --image-field, --id-field)"
)


@dataclass(frozen=True)
class NamedFields:
    """The columns that the user names, spelt as in the table; case does not matter."""

    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    id: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        text_field: str | Sequence[str] | None,
        image_field: str | Sequence[str] | None,
        id_field: str | Sequence[str] | None,
    ) -> NamedFields:
        """Make it from one name or several of each kind."""
        given = (text_field, image_field, id_field)
        return cls(*((each,) if isinstance(each, str) else tuple(each or ()) for each in given))

    def __bool__(self) -> bool:
        return bool(self.text or self.image or self.id)


def plain_name(name: str) -> str:
    """A column's name in lower case and underscores, without brackets: ``Body (HTML)`` is ``body``.

    A number at the end is removed too: ``image1`` and ``Image 2`` are columns of one kind.
    """
    name = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", name[:200])
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    words = re.findall(r"[^\W_]+", name.casefold())
    return re.sub(r"_?\d+$", "", "_".join(words))


@dataclass(frozen=True)
class Columns:
    """The role of each column of a table.

    Attributes:
        id: columns whose values together are a document's id.
        title: the column with its title.
        text: columns with its text, joined by blank lines.
        image: columns with its images.
        caption: for a column of images, the column with their captions.
        metadata: all other columns.
        id_is_guessed: whether the id column was chosen by its name, so that its values may repeat.
    """

    id: tuple[str, ...] = ()
    title: str | None = None
    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    caption: Mapping[str, str] = field(default_factory=dict)
    metadata: tuple[str, ...] = ()
    id_is_guessed: bool = False

    @property
    def embedded(self) -> bool:
        """Whether there is anything to search."""
        return bool(self.title or self.text or self.image)

    def in_words(self) -> str:
        """The role of each column, for the summary."""
        captions = [f"{caption} ({image})" for image, caption in self.caption.items()]
        parts = {
            "id": self.id,
            "title": (self.title,) if self.title else (),
            "text": self.text,
            "images": self.image,
            "captions": self.caption.values() if len(captions) == 1 else captions,
            "metadata, not searched": self.metadata,
        }
        said = [f"{part}: {listed(names)}" for part, names in parts.items() if names]
        return "; ".join(
            said
            if self.id
            else ["id: file and line, so a row that moves counts as new (--id-field)", *said]
        )


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = [excerpt(name, 60) or "''" for name in names]
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def find_columns(
    names: Sequence[str], samples: Mapping[str, Sequence[Any]], named: NamedFields
) -> Columns:
    """Find the role of each column: as the user names it, else by the column's own name.

    A column that the user names as the id remains a title or text if its own name says so: an id is
    not searched.

    Args:
        names: the columns, in their order.
        samples: some values of each.
        named: the columns that the user names.

    Raises:
        InvalidValueError: a column that the user names does not exist, or is named twice.
    """
    image = _look_up(names, named.image, "image_field")
    text = _look_up(names, named.text, "text_field")
    identifier = _look_up(names, named.id, "id_field")
    for name in text:
        if name in image:
            raise InvalidValueError(f"{name!r} is named both as text_field and as image_field")
    plain = {name: plain_name(name) for name in names}
    free = [name for name in names if name not in {*text, *image, *identifier}]
    if not image:
        image = [name for name in free if _shows_images(plain[name], samples.get(name, ()))]
        free = [name for name in free if name not in image]
    caption = _captions(free, image, plain) if image else {}
    free = [name for name in free if name not in caption.values()]
    guessed = not identifier
    if guessed:
        identifier = _first(free, plain, ID_NAMES)
        free = [name for name in free if name not in identifier]
    named_ids = () if guessed else [name for name in identifier if name not in {*text, *image}]
    searched = [name for name in names if name in {*free, *named_ids}]
    title = _first(searched, plain, TITLE_NAMES)
    searched = [name for name in searched if name not in title]
    free = [name for name in free if name not in title]
    if not text:
        texts = [name for name in searched if plain[name] in TEXT_NAMES]
        own = [name for name in texts if name.strip().casefold() == "text"]
        text = own or texts
        if not (text or title or image):  # captions without images are texts
            text = [name for name in free if plain[name] in CAPTION_NAMES]
        free = [name for name in free if name not in text]
    return Columns(
        id=tuple(identifier),
        title=title[0] if title else None,
        text=tuple(text),
        image=tuple(image),
        caption=caption,
        metadata=tuple(free),
        id_is_guessed=guessed and bool(identifier) and identifier[0].strip().casefold() != "id",
    )


def metadata_name(name: str) -> str:
    """A column's name as a metadata key, renamed if an index reserves that name."""
    return f"{name}_column" if name in _RESERVED else name


def _first(free: Sequence[str], plain: Mapping[str, str], known: Sequence[str]) -> list[str]:
    found = sorted((known.index(plain[n]), i) for i, n in enumerate(free) if plain[n] in known)
    return [free[found[0][1]]] if found else []


def _look_up(names: Sequence[str], asked: Collection[str], option: str) -> list[str]:
    found: list[str] = []
    for each in asked:
        same = [name for name in names if name == each]
        same = same or [n for n in names if n.strip().casefold() == each.strip().casefold()]
        if len(same) != 1:
            near = get_close_matches(each, [name[:200] for name in names[:1000]], n=1)
            why = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidValueError(
                f"{option}={each!r} names no column; it has {listed(names) or 'none'}{why}"
                if not same
                else f"{option}={each!r} names {len(same)} columns: {listed(same)}"
            )
        if same[0] in found:
            raise InvalidValueError(f"{option} names {each!r} twice")
        found += same
    return found


def _shows_images(plain: str, samples: Sequence[Any]) -> bool:
    """Whether a column holds images, by its name and, except for our own names, its values."""
    if plain in _OWN_IMAGES:
        return True
    words = set(plain.split("_"))
    by_name = plain in FILE_NAMES or (
        words & _IMAGE_WORDS and words <= _IMAGE_WORDS | _PLACE_WORDS | _WHICH_WORDS
    )
    return bool(by_name) and (
        any(map(_names_an_image, samples)) or (not samples and plain not in FILE_NAMES)
    )


def _names_an_image(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_names_an_image, value[:10]))
    if isinstance(value, dict):
        return any(isinstance(each, str) and is_image_path(each) for each in value.values())
    return isinstance(value, str) and is_image_path(value)


def _captions(
    free: Sequence[str], images: Sequence[str], plain: Mapping[str, str]
) -> dict[str, str]:
    """The caption column of each image column: the same name apart from words like ``alt``.

    ``Image Alt Text`` is the caption of ``Image Src``, ``small_image_label`` of ``small_image``.
    A name without other words, such as ``caption``, belongs to the first image column.
    """
    found: dict[str, str] = {}
    without = _IMAGE_WORDS - {"thumbnail", "thumbnails"} | _PLACE_WORDS | _CAPTION_WORDS
    for name in free:
        words = set(plain[name].split("_"))
        of_images = bool(words & _IMAGE_WORDS)
        if plain[name] not in CAPTION_NAMES and not (of_images and words & _CAPTION_WORDS):
            continue
        number = re.findall(r"\d+$", name.strip())
        same = [
            image
            for image in images
            if image not in found
            and set(plain[image].split("_")) - without == words - without
            and re.findall(r"\d+$", image.strip()) == number
        ]
        if not same and not words - without and not number and images[0] not in found:
            same = [images[0]]
        if same:
            found[same[0]] = name
    return found
