"""Names and texts that a user may give, with signs that mean something to a terminal, a page, a table or a library."""

# Name of a class or a file -> how it is shown in one line.
SHOWN = {
    "a\x1b[31mred\x07": r"a\x1b[31mred\x07",
    "50 %\r100 %": r"50 %\r100 %",
    "new\nline": r"new\nline",
    "<script>alert(1)<|script>": "<script>alert(1)<|script>",
    "![i](http:x.y|p.png)": "![i](http:x.y|p.png)",
    "p|q`r` **b** _e_": "p|q`r` **b** _e_",
    "$\\frac{$ [bold]": "$\\frac{$ [bold]",
    "ab\u202ecd": r"ab\u202ecd",
    "\N{DOG FACE} \u0645\u0631": "\N{DOG FACE} \u0645\u0631",
    "=1+1": "=1+1",
    "@sum": "@sum",
}
NAMES, SHOWN_NAMES = list(SHOWN), list(SHOWN.values())
QUESTION = '<img src="http://x/y.png"> ![a](http://x/z.png) \x1b]0;t\x07 $\\frac{$ | `b` | \u202e = \N{DOG FACE}'
