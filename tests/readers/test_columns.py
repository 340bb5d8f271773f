from __future__ import annotations

import re

import pytest

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.columns import Columns, NamedFields, find_columns, plain_name

NONE = NamedFields()


def columns(header: str, named: NamedFields = NONE, sample: str = "a.png") -> Columns:
    names = header.split(",")
    return find_columns(names, {name: [sample] for name in names}, named)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Body (HTML)", "body"),
        ("productImageUrl", "product_image_url"),
        ("Product Image File - 1", "product_image_file"),
        ("image2", "image"),
        ("Name *", "name"),
        ("Product ID [Non Editable]", "product_id"),
        ("IMAGE10", "image"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


# The columns of each program's exports: id, title, texts, images.
EXPORTS = {
    "Shopify": (
        "Handle,Title,Body (HTML),Vendor,Image Src,Image Position,Image Alt Text,Variant Image",
        ("Handle", "Title", ["Body (HTML)"], ["Image Src", "Variant Image"]),
    ),
    "Shopify, newer": (
        "Title,URL handle,Description,Product image URL,Image alt text,SEO title",
        ("URL handle", "Title", ["Description"], ["Product image URL"]),
    ),
    "WooCommerce": (
        "ID,Type,SKU,Name,Short description,Description,Regular price,Images",
        ("ID", "Name", ["Short description", "Description"], ["Images"]),
    ),
    "Magento": (
        "sku,name,description,base_image,base_image_label,small_image,thumbnail_image,"
        "additional_images,additional_image_labels,url_key",
        (
            *("sku", "name", ["description"]),
            ["base_image", "small_image", "thumbnail_image", "additional_images"],
        ),
    ),
    "PrestaShop": (
        "ID,Active (0/1),Name *,Description,Image URLs (x;y;z...),Image alt texts (x;y;z...)",
        ("ID", "Name *", ["Description"], ["Image URLs (x;y;z...)"]),
    ),
    "OpenCart": (
        "product_id,name(en-gb),model,image_name,description(en-gb),meta_title(en-gb)",
        ("product_id", "name(en-gb)", ["description(en-gb)"], ["image_name"]),
    ),
    "Google Merchant": (
        "id,title,description,link,image_link,additional_image_link,price",
        ("id", "title", ["description"], ["image_link", "additional_image_link"]),
    ),
    "BigCommerce": (
        "Product ID,Product Name,Product Description,Product Image File - 1,"
        "Product Image Description - 1,Product Image File - 2,Product Image Description - 2",
        (
            *("Product ID", "Product Name", ["Product Description"]),
            ["Product Image File - 1", "Product Image File - 2"],
        ),
    ),
    "Amazon": (
        "item_sku,item_name,main_image_url,other_image_url1,product_description,bullet_point1",
        (
            *("item_sku", "item_name", ["product_description", "bullet_point1"]),
            ["main_image_url", "other_image_url1"],
        ),
    ),
    "Etsy": (
        "TITLE,DESCRIPTION,PRICE,IMAGE1,IMAGE2,SKU",
        ("SKU", "TITLE", ["DESCRIPTION"], ["IMAGE1", "IMAGE2"]),
    ),
    "Kaggle: reviews": ("sku,title,review", ("sku", "title", ["review"], [])),
    "Kaggle: images": ("filename,label", (None, None, [], ["filename"])),
    "Kaggle: captions": ("image_path,caption", (None, None, [], ["image_path"])),
    "Hugging Face": ("file_name,text", (None, None, ["text"], ["file_name"])),
    "ours": ("id,title,text,summary,image", ("id", "title", ["text"], ["image"])),
}


@pytest.mark.parametrize("program", EXPORTS)
def test_columns_as_programs_export_them(program: str) -> None:
    header, (identifier, title, texts, images) = EXPORTS[program]
    found = columns(header)

    assert (found.id[0] if found.id else None, found.title) == (identifier, title)
    assert (list(found.text), list(found.image)) == (texts, images)
    parts = {*found.id, found.title, *found.text, *found.image, *found.caption.values()} - {None}
    assert {*found.metadata} == set(header.split(",")) - parts


@pytest.mark.parametrize(
    ("program", "captions"),
    [
        ("Shopify", {"Image Src": "Image Alt Text"}),
        ("Shopify, newer", {"Product image URL": "Image alt text"}),
        (
            "Magento",
            {"base_image": "base_image_label", "additional_images": "additional_image_labels"},
        ),
        ("PrestaShop", {"Image URLs (x;y;z...)": "Image alt texts (x;y;z...)"}),
        (
            "BigCommerce",
            {f"Product Image File - {i}": f"Product Image Description - {i}" for i in (1, 2)},
        ),
        ("Kaggle: captions", {"image_path": "caption"}),
    ],
)
def test_captions_belong_to_their_images(program: str, captions: dict[str, str]) -> None:
    assert columns(EXPORTS[program][0]).caption == captions


def test_a_column_whose_values_are_no_images_is_none() -> None:
    assert columns("photos,file_name,text", sample="3").image == ()
    assert columns("image,text", sample="3").image == ("image",)


def test_captions_without_images_are_texts() -> None:
    assert columns("caption,label", sample="a dog").text == ("caption",)


def test_named_columns_come_before_guessed_ones() -> None:
    found = columns("id,title,text,review,label,pic", NamedFields(("Review", "title"), ("label",)))

    assert (found.text, found.image, found.title, found.id) == (
        ("review", "title"),
        ("label",),
        None,
        ("id",),
    )
    assert found.metadata == ("text", "pic")


@pytest.mark.parametrize(
    ("header", "named", "title", "text"),
    [
        ("name,description,sku", NamedFields(id=("name",)), "name", ("description",)),
        ("name,headline,review", NamedFields(id=("headline",)), "name", ("review",)),
        ("title,review,summary", NamedFields(id=("review",)), "title", ("review", "summary")),
        ("sku,name,review", NamedFields(id=("sku", "name")), "name", ("review",)),
        ("name,review", NamedFields(text=("name",), id=("name",)), None, ("name",)),
        ("sku,review", NamedFields(id=("sku",)), None, ("review",)),
    ],
)
def test_a_column_named_as_the_id_is_searched_as_before(
    header: str, named: NamedFields, title: str | None, text: tuple[str, ...]
) -> None:
    found = columns(header, named)

    assert (found.id, found.title, found.text) == (named.id, title, text)
    assert not set(found.metadata) & {title, *text, *named.id}


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (NamedFields(("reviw",)), "text_field='reviw' names no column; it has id, review; did you"),
        (NamedFields(image=("x",)), "image_field='x' names no column; it has id, review"),
        (NamedFields(id=("id", "ID")), "id_field names 'ID' twice"),
        (NamedFields(("id",), ("id",)), "'id' is named both as text_field and as image_field"),
    ],
)
def test_a_named_column_must_be_there(named: NamedFields, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(reason)):
        columns("id,review", named)
