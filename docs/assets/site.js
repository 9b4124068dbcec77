// The theme lets wide tables scroll; so that a keyboard can scroll them too, each can have the focus.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    for (const wide of document.querySelectorAll(".md-typeset__scrollwrap")) wide.tabIndex = 0;
  })
);
