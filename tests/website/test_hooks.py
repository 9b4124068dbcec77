"""What becomes of a page while it is built."""

from __future__ import annotations

import hooks


def test_a_word_of_code_is_marked_so_that_no_option_is_broken_at_its_hyphens() -> None:
    page = (
        "<p><code>--no-verify</code> <code>mlx-peft ls methods</code> <code>a_name_longer_than_a_phone_shows</code></p>"
    )
    assert hooks.on_page_content(page, page=None) == page.replace("<code>--no", '<code class="word">--no')
