"""What the demo looks like: colours, lines, lettering."""

from cut import FROZEN
from qgis.core import (
    Qgis,
    QgsFillSymbol,
    QgsLineSymbol,
    QgsPalLayerSettings,
    QgsProperty,
    QgsRasterDataProvider,
    QgsRasterLayer,
    QgsRuleBasedLabeling,
    QgsSymbolLayer,
    QgsTextFormat,
    QgsVectorLayer,
)
from qgis.PyQt.QtGui import QColor, QFont

FONT = "DejaVu Sans"  # Debian's fonts-dejavu-core: there on every server that can draw text at all
OCEAN, LAKE, SHORE, INK = "#b9d3e2", "#c6dde9", "#6f97ae", "#4a4238"
ICE, UNDETERMINED = "#f4f6f7", "#e6e1d8"
TINTS = ("#f1e2bf", "#d3dfbd", "#f0d3c0", "#d9d5e4", "#f3ecc9", "#c9dfd8")


def text(
    size: float, colour: str = INK, spacing: float = 0, bold: bool = False, halo: float = 0
) -> QgsTextFormat:
    font = QFont(FONT)
    font.setPointSizeF(size)
    font.setBold(bold)
    font.setLetterSpacing(QFont.AbsoluteSpacing, spacing)
    style = QgsTextFormat()
    style.setFont(font)
    style.setNamedStyle("Bold" if bold else "Book")
    style.setSize(size)
    style.setColor(QColor(colour))
    around = style.buffer()
    around.setEnabled(halo > 0)
    around.setSize(halo)
    around.setColor(QColor("#fdfaf3"))
    around.setOpacity(0.75)
    style.setBuffer(around)
    return style


def rule(
    name: str, expression: str, style: QgsTextFormat, where: str, size: str = ""
) -> QgsRuleBasedLabeling.Rule:
    settings = QgsPalLayerSettings()
    settings.fieldName, settings.isExpression = expression, True
    settings.autoWrapLength = 14
    settings.multilineAlign = QgsPalLayerSettings.MultiCenter
    settings.multilineHeight = 0.9
    settings.setFormat(style)
    # A fixed point instead of the best free place: a name sits still from tile to tile.
    values = {
        QgsPalLayerSettings.PositionX: "label_x",
        QgsPalLayerSettings.PositionY: "label_y",
        QgsPalLayerSettings.Hali: "'Center'",
        QgsPalLayerSettings.Vali: "'Half'",
    }
    if size:
        values[QgsPalLayerSettings.Size] = size
    properties = settings.dataDefinedProperties()
    for key, value in values.items():
        properties.setProperty(key, QgsProperty.fromExpression(value))
    settings.setDataDefinedProperties(properties)
    made = QgsRuleBasedLabeling.Rule(settings)
    made.setDescription(name)
    made.setFilterExpression(f"name <> '' and {where}")
    return made


def label(layer: QgsVectorLayer, rules: list[QgsRuleBasedLabeling.Rule]) -> None:
    root = QgsRuleBasedLabeling.Rule(None)
    for child in rules:
        root.appendChild(child)
    layer.setLabeling(QgsRuleBasedLabeling(root))
    layer.setLabelsEnabled(True)


ROOM = "(area_km2 * 1e12 / @map_scale ^ 2)"  # mm² that the area takes on the paper


def style_countries(layer: QgsVectorLayer) -> None:
    fill = QgsFillSymbol.createSimple({"color": TINTS[0], "outline_style": "no"})
    fill.setOpacity(0.68)  # of the fill, not of the layer: names stay as they are
    tints = ", ".join(f"'{tint}'" for tint in TINTS)
    fill.symbolLayer(0).setDataDefinedProperty(
        QgsSymbolLayer.PropertyFillColor,
        QgsProperty.fromExpression(
            f"case when iso_a2 in {FROZEN} then '{ICE}' when name = '' then '{UNDETERMINED}' "
            f"else array_get(array({tints}), tint) end"
        ),
    )
    layer.renderer().setSymbol(fill)
    label(
        layer,
        [
            rule(
                "Large",
                "upper(name)",
                text(8, INK, 1.4, halo=0.7),
                f"{ROOM} >= 170",
                f"clamp(6.2, 3.6 + 0.19 * sqrt{ROOM}, 12)",
            ),
            rule("Medium", "name", text(6.8, INK, 0.3, halo=0.7), f"{ROOM} >= 34 and {ROOM} < 170"),
            rule(
                "Small",
                "name",
                text(6.2, "#6b6154", 0.2, halo=0.6),
                f"{ROOM} < 34 and @map_scale < 1.6e7",
            ),
        ],
    )


def style_states(layer: QgsVectorLayer) -> None:
    layer.renderer().setSymbol(
        QgsFillSymbol.createSimple(
            {
                "style": "no",
                "outline_color": "#b3a48f",
                "outline_width": "0.14",
                "outline_style": "dash",
            }
        )
    )
    layer.setScaleBasedVisibility(True)
    layer.setMinimumScale(9e6)
    label(layer, [rule("State", "name", text(6, "#8a7c69", 0.3, halo=0.6), f"{ROOM} >= 160")])


def style_lakes(layer: QgsVectorLayer) -> None:
    layer.renderer().setSymbol(
        QgsFillSymbol.createSimple({"color": LAKE, "outline_color": SHORE, "outline_width": "0.1"})
    )


def style_coastline(layer: QgsVectorLayer) -> None:
    layer.renderer().setSymbol(
        QgsLineSymbol.createSimple(
            {"line_color": SHORE, "line_width": "0.16", "joinstyle": "round", "capstyle": "round"}
        )
    )


def style_borders(layer: QgsVectorLayer) -> None:
    line = QgsLineSymbol.createSimple(
        {"line_color": "#8d7b66", "line_width": "0.2", "joinstyle": "round", "capstyle": "round"}
    )
    line.symbolLayer(0).setDataDefinedProperty(
        QgsSymbolLayer.PropertyStrokeStyle,
        QgsProperty.fromExpression("if(settled = 1, 'solid', 'dot')"),
    )
    layer.renderer().setSymbol(line)


def style_relief(layer: QgsRasterLayer) -> None:
    layer.hueSaturationFilter().setSaturation(-28)
    layer.brightnessFilter().setBrightness(4)
    # By the provider: QGIS's own resampler works before the reprojection and leaves blocks there.
    methods = (
        getattr(Qgis, "RasterResamplingMethod", None) or QgsRasterDataProvider.ResamplingMethod
    )
    layer.setResamplingStage(Qgis.RasterResamplingStage.Provider)
    layer.dataProvider().enableProviderResampling(True)
    layer.dataProvider().setZoomedInResamplingMethod(methods.Cubic)
    layer.dataProvider().setZoomedOutResamplingMethod(methods.Bilinear)
    layer.dataProvider().setMaxOversampling(2)


STYLES = {
    "relief": style_relief,
    "countries": style_countries,
    "states": style_states,
    "lakes": style_lakes,
    "coastline": style_coastline,
    "borders": style_borders,
}
