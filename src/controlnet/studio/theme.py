"""How the studio looks: calm, dark and light, with the fonts that the machine has."""

from pathlib import Path

import gradio as gr

FONT = ("Inter", "Segoe UI", "system-ui", "sans-serif")
MONOSPACED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
STYLE = Path(__file__).with_name("studio.css")
TEAL = gr.themes.Color(
    name="teal",
    c50="#effaf8",
    c100="#d5f1ec",
    c200="#aee3da",
    c300="#7bcec2",
    c400="#46b1a4",
    c500="#24958a",
    c600="#167a72",
    c700="#14625d",
    c800="#144e4b",
    c900="#14413f",
    c950="#062625",
)
STONE = gr.themes.Color(
    name="stone",
    c50="#f8f8f7",
    c100="#f0f0ee",
    c200="#e3e3e0",
    c300="#cfcfcb",
    c400="#a3a39e",
    c500="#75756f",
    c600="#585853",
    c700="#3d3d3a",
    c800="#282826",
    c900="#1b1b1a",
    c950="#121211",
)


def theme() -> gr.themes.Base:
    made = gr.themes.Base(
        primary_hue=TEAL,
        secondary_hue=TEAL,
        neutral_hue=STONE,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
        font=FONT,
        font_mono=MONOSPACED,
    )
    return made.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="*block_background_fill",
        block_label_background_fill_dark="*block_background_fill",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_border_width="0px",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="550",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_shadow="none",
        layout_gap="8px",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
        button_large_padding="7px 14px",
        button_small_padding="5px 10px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
    )
