"""Colors of all figures and pictures, distinguishable for the color-blind; most are Okabe and Ito's."""

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#B8529B", "#666666"
# Colors of correct detections, wrong detections, and the query.
CORRECT, WRONG, QUERY = "#0A7CFF", "#F0640A", "#222222"
# Ten colors that differ in lightness as well as in hue.
CATEGORIES = (
    *(BLUE, VERMILION, GREEN, "#CC79A7", "#56B4E9"),
    *("#8C6D00", "#000000", "#7F3C8D", "#E68310", "#5F5F5F"),
)
