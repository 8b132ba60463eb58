// In print all code is open; on a screen, what scrolls can be reached by the keyboard.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("article details")) part.open = true;
});
const reach = () => {
  const parts = "article pre > code, article .md-typeset__scrollwrap";
  for (const part of document.querySelectorAll(parts)) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
};
addEventListener("load", () => setTimeout(reach, 500));
addEventListener("resize", reach);
addEventListener("toggle", reach, true);
