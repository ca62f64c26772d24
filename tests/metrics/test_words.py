"""The words of texts in all scripts, and the scores that are made of them."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from loramix.metrics.diversity import distinct, repetition, words
from loramix.metrics.matching import exact_match, keyword_use
from loramix.metrics.rouge import KINDS, rouge
from loramix.metrics.translation import bleu, chrf
from loramix.metrics.words import one_spelling, split_words

SCRIPTS = {
    "Arabic": "القطة الصغيرة تنام في الشمس",
    "Armenian": "Փոքրիկ կատուն քնում է",
    "Bengali": "ছোট বিড়ালটি রোদে ঘুমায়",
    "Burmese": "ကြောင်လေး နေပူထဲ အိပ်နေသည်",
    "Chinese": "小猫在阳光下睡觉",
    "Devanagari": "छोटी बिल्ली धूप में सोती है",
    "Ethiopic": "ትንሿ ድመት በፀሐይ ትተኛለች",
    "Georgian": "პატარა კატა მზეზე სძინავს",
    "Greek": "Η μικρή γάτα κοιμάται στον ήλιο",
    "Hebrew": "החתולה הקטנה ישנה בשמש",
    "Japanese": "小さな猫がソファーで眠る",
    "Khmer": "ឆ្មាតូចដេកក្នុងព្រះអាទិត្យ",
    "Korean": "작은 고양이가 햇볕에서 잔다",
    "Lao": "ແມວນ້ອຍນອນຢູ່ໃນແດດ",
    "Persian": "گربه‌ی کوچک می‌خوابد",
    "Russian": "Маленькая кошка спит на солнце",
    "Tamil": "சிறிய பூனை வெயிலில் தூங்குகிறது",
    "Thai": "แมวน้อยนอนอยู่กลางแดด",
    "Tibetan": "ཞི་མི་ཆུང་ཆུང་ཉི་མའི་འོག་ཏུ་གཉིད་",
    "Turkish": "Küçük kedi güneşte uyuyor",
    "Ukrainian": "Мала кішка п’є об’єм молока",
    "Vietnamese": "Con mèo nhỏ ngủ dưới nắng",
    "emojis": "👍🏽 ❤️ 👨‍👩‍👧 🇩🇪",
}
# Texts as models and data sets have them.
ASCII = [
    "The cat's 2nd well-known mat, isn't it?",
    "snake_case = CamelCase(x_1, 3.5e-7)  # __init__",
    "\tindented\r\n\r\nlines\x0b\x0c\x1c and\x1fothers\x00\x7f",
    "'quoted' ''twice'' rock'n'roll o'clock '90s dogs' d'",
    "-5 % / 1,024.50 USD; a--b...c _ __ ' - ",
    "generalizations happily agreed relational conditional skies dying news innings flies",
    "A AN THE of and xxxx xxx aaaa ied ies sses eed",
    "<|im_end|> https://example.org/a?b=c&d=%20 e@f.gh $10^2$",
    "frog / pond / splash",
    "?!…"[:2],
    "",
    " \n",
]
GENERATED = st.lists(
    st.sampled_from(["running", "Foxes", "it's", "_", "a_b", "'", "-", "12", " ", "\n", "I'M"])
    | st.text(st.characters(max_codepoint=127), max_size=8)
).map("".join)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_a_text_in_any_script_has_all_scores_with_itself(text: str) -> None:
    other = "😀 …"
    ones = {kind: [1.0, 0.0] for kind in KINDS}
    assert rouge([text, other], [text, text]) == ones
    assert bleu([text, other], [text, text]) == [1.0, pytest.approx(0, abs=0.01)]
    assert chrf([text, other], [text, text])[0] == 1.0
    assert exact_match([text, other], [text, text]) == [1.0, 0.0]
    assert keyword_use([text, text], [text, other]) == [1.0, 0.0]
    assert words([text])[0] >= 3
    assert distinct([text, text], 1) <= 0.5
    assert repetition([f"{text} {text}"])[0] >= 0.4


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_no_letter_of_a_text_is_lost(text: str) -> None:
    kept = re.sub(r"[\W_]", "", one_spelling(text))
    assert re.sub(r"[\W_]", "", "".join(split_words(text))) == kept


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("東京2020年のＴシャツ、ｶﾞﾑ。", [*"東京", "2020", *"年のtシャツガム"]),
        ("นํ้า ๑๒", ["นํ้", "า", "๑๒"]),  # a vowel sign stays with its letter, digits stay together
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("می‌خواهم", ["میخواهم"]),
        ("ﻣﺮﺣﺒﺎ", ["مرحبا"]),  # the joined forms of files made from pages
        ("п’ять п'ять пʼять", ["п'ять"] * 3),
        ("10² ½ Ⅷ", ["10²", "½", "ⅷ"]),
        ("ex\u00adample a\u200bb \ufeffc", ["example", "a", "b", "c"]),
        ("ﬁne STRASSE Straße ΣΟΦΟΣ", ["fine", "strasse", "strasse", "σοφοσ"]),
        ("so 👍🏽👍 ❤️ 🇩🇪🇫🇷 ©", ["so", "👍🏽", "👍", "❤", "🇩🇪", "🇫🇷"]),
        ("\u0301 \ufe0f ㅤ ـ", ["ـ"]),
        ("…!? 「」 ؟ ।", []),
    ],
)
def test_words_of_other_scripts(text: str, found: list[str]) -> None:
    assert split_words(text) == found
    assert split_words(unicodedata.normalize("NFD", text)) == found


@pytest.mark.parametrize("text", ASCII)
def test_rouge_on_ascii_is_that_of_rouge_score(text: str) -> None:
    check_parity(text, "the cat isn't generally agreeing: 3.5 snake case, frogs and ponds o'clock")
    check_parity(text, text)


@given(GENERATED, GENERATED)
def test_rouge_on_generated_ascii_is_that_of_rouge_score(text: str, reference: str) -> None:
    check_parity(text, reference)


def check_parity(text: str, reference: str) -> None:
    expected = RougeScorer(KINDS, use_stemmer=True).score(target=reference, prediction=text)
    found = rouge([text], [reference])
    assert found == {kind: [float(expected[kind].fmeasure)] for kind in KINDS}


@given(GENERATED)
def test_words_of_ascii_are_letters_digits_and_apostrophes_between_them(text: str) -> None:
    assert split_words(text) == re.findall(r"[a-z0-9]+(?:'[a-z0-9]+)*", text.lower())


@pytest.mark.parametrize(
    ("text", "reference"),
    [("Привет мир", "привет, МИР!"), ("小さい猫", "小さい、猫"), ("کتاب‌ها او", "کتابها او")],
)
def test_rouge_sees_neither_case_nor_punctuation_nor_joiners(text: str, reference: str) -> None:
    assert rouge([text], [reference]) == {kind: [1.0] for kind in KINDS}


def test_half_of_the_words_are_half_of_the_score() -> None:
    assert rouge(["красный дом"], ["красный сад"])["rouge1"] == [0.5]
    assert rouge(["赤い"], ["赤く"])["rouge1"] == [0.5]
    assert keyword_use(["古池"], ["池の水"]) == [0.5]
    assert repetition(["カカカ"]) == [0.5]


@pytest.mark.parametrize("text", ["", " \n", "…", "--"])
def test_texts_without_words_have_no_rouge(text: str) -> None:
    assert rouge([text, text, "水"], [text, "水", text]) == {kind: [0.0] * 3 for kind in KINDS}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("我在2020年买了iPhone 12，价格是¥5,999.00。", "我在2021年买了iPhone 12，价格：¥4,999。"),
        ("今天，天气很好。Hello, world!", "今天天气不好（很冷）。Hello, you!"),
    ],
)
def test_bleu_of_chinese_is_that_of_sacrebleu_for_chinese(text: str, reference: str) -> None:
    expected = BLEU(effective_order=True, tokenize="zh").sentence_score(text, [reference]).score
    assert 0 < expected < 100
    assert bleu([text], [reference]) == [expected / 100]


@given(GENERATED, GENERATED)
def test_bleu_and_chrf_of_ascii_are_those_of_sacrebleu(text: str, reference: str) -> None:
    for score, scorer in ((bleu, BLEU(effective_order=True)), (chrf, CHRF())):
        expected = float(scorer.sentence_score(text, [reference]).score) / 100
        assert score([text], [reference]) == [min(expected, 1.0)]
