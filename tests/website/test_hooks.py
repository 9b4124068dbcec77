"""What becomes of a page while it is built."""

from __future__ import annotations

import re

import hooks


def test_a_word_of_code_is_marked_so_that_no_option_is_broken_at_its_hyphens() -> None:
    page = (
        "<p><code>--no-verify</code> <code>mlx-peft ls methods</code> <code>a_name_longer_than_a_phone_shows</code></p>"
    )
    assert hooks.on_page_content(page, page=None) == page.replace("<code>--no", '<code class="word">--no')


def test_an_option_among_words_of_code_is_marked_and_nothing_else_of_them() -> None:
    page = "<p><code>mlx-peft bench --out FILE</code> <code>--rank=8 of</code> <code>a - b</code> --no</p>"
    marked = hooks.on_page_content(page, page=None)
    assert re.findall('<span class="word">(.*?)</span>', marked) == ["--out", "--rank"]
    assert re.sub("</?span[^>]*>", "", marked) == page


def test_a_number_is_marked_so_that_it_is_not_broken_at_its_sign() -> None:
    cell = '<td style="text-align: right;">{}</td>'
    numbers, words = ("7.3e-07", "<strong>69.70</strong> ± 1.28"), ("100; together over at most 24 times as many",)
    for text in numbers:
        assert hooks.on_page_content(cell.format(text), page=None) == cell.format(text).replace(
            "td ", 'td class="word" ', 1
        )
    for text in words:
        assert hooks.on_page_content(cell.format(text), page=None) == cell.format(text)


def test_a_picture_that_scrolls_can_be_reached_by_the_keyboard_and_a_text_cannot() -> None:
    picture, text = '<p><img alt="a" src="a.png"></p>', '<p><img alt="a" src="a.png"> is small</p>'
    assert hooks.on_page_content(picture, page=None) == picture.replace("<p>", '<p tabindex="0">')
    assert hooks.on_page_content(text, page=None) == text


def test_the_search_has_a_name() -> None:
    dialog = '<div class="md-search" data-md-component="search" role="dialog">'
    for named in (hooks.on_post_page(dialog, page=None), hooks.on_post_template(dialog, template_name="404.html")):
        assert named == dialog.replace(">", ' aria-label="Search">')


def test_the_page_of_what_is_not_found_says_what_to_do_and_leads_to_the_first_page() -> None:
    page = f'<a href="/." title="mlx-peft" class="md-logo"></a>{hooks.NOT_FOUND}'
    assert '<a href="/.">begin at the first.</a>' in hooks.on_post_template(page, template_name="404.html")
