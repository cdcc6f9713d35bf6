"""Tables in encodings of before Unicode: read by their words, and never without a word."""

import random

import pytest

import senn
from senn.cli.main import main
from senn.data import TableEncoder, read_table
from senn.errors import SennError

WORDS = {
    "cp1251": "Москва Казань Самара красный синий жёлтый женский мужской высокий низкий",
    "koi8-r": "Москва Казань Самара красный синий жёлтый женский мужской высокий низкий",
    "gb18030": "北京 上海 广州 红色 蓝色 优秀 良好 合格 城市 价格",
    "cp932": "東京 大阪 京都 名古屋 男性 女性 りんご バナナ カテゴリ 商品",
    "euc_jis_2004": "東京 大阪 京都 名古屋 男性 女性 りんご バナナ カテゴリ 商品",
    "cp949": "서울 부산 대구 인천 빨강 파랑 남자 여자 사과 바나나",
    "big5hkscs": "臺北 高雄 臺中 紅色 藍色 優秀 良好 城市 價格 類別",
    "cp1253": "Αθήνα Πάτρα Λάρισα κόκκινο μπλε άνδρας γυναίκα υψηλό χαμηλό πόλη",
    "cp1254": "İstanbul Muğla Eskişehir Şişli yeşil güneş yüksek öğretmen şehir öğrenci",
    "cp1250": "Łódź Kraków Gdańsk Wrocław żółty czerwony mężczyzna średni książka śnieg",
    "cp1255": "ירושלים חיפה אדום כחול גבר אישה גבוה נמוך עיר מחיר",
    "cp1256": "القاهرة دبي أحمر أزرق رجل امرأة مرتفع منخفض مدينة سعر",
    "cp874": "กรุงเทพ เชียงใหม่ แดง น้ำเงิน ชาย หญิง สูง ต่ำ เมือง ราคา",
    "cp1252": "München Köln Nürnberg grün weiß männlich Straße schön Zürich Düsseldorf",
}
UNMISTAKABLE = ("cp1251", "gb18030", "cp932", "cp949", "big5hkscs", "cp1255", "cp1256")


def table(encoding, rows=20):
    draw = random.Random(0)
    words = WORDS[encoding].split()
    lines = [f"{draw.random():.3f},{draw.choice(words)},{at % 2}" for at in range(rows)]
    return "\n".join([f"x,{words[0]},kind", *lines]) + "\n"


def written(folder, text, encoding, name="t.csv"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize("encoding", WORDS)
def test_a_table_is_read_as_it_was_written_and_a_note_says_in_which_encoding(tmp_path, encoding):
    found = read_table(written(tmp_path, table(encoding), encoding))
    same = read_table(written(tmp_path, table(encoding), "utf-8", "u.csv"))
    assert found.frame.equals(same.frame)
    assert found.legacy_encoding == encoding
    assert same.legacy_encoding is None
    assert "isn't UTF-8 and is read as" in found.notes[0]
    assert "--encoding names" in found.notes[0]


@pytest.mark.parametrize("encoding", UNMISTAKABLE)
def test_what_no_other_encoding_would_read_as_words_is_not_called_doubtful(tmp_path, encoding):
    assert "but may be" not in read_table(written(tmp_path, table(encoding), encoding)).notes[0]


def test_a_doubtful_one_is_told_with_a_word_in_both_readings(tmp_path):
    note = read_table(written(tmp_path, table("cp1250"), "iso8859-2")).notes[0]
    assert "ISO-8859-2" in note
    assert "Windows-1250" in note
    assert "--encoding names the right one" in note


@pytest.mark.parametrize(
    "cell",
    [
        "12,50 €",
        "21 °C",
        "5 µg/l",
        "£6.20",
        "½",
        "3 m³",
        "8 m²",
        "\u2013 a",
        "it\u2019s",
        "\u201cx\u201d",
        "«x»",
    ],
)
def test_symbols_alone_are_those_of_windows_1252(tmp_path, cell):
    found = read_table(written(tmp_path, f"a;b\n1;{cell}\n2;x\n", "cp1252"))
    assert found.frame["b"].iloc[0] == cell
    assert "read as Windows-1252; --encoding" in found.notes[0]


def test_symbols_however_many_do_not_outweigh_words(tmp_path):
    rows = [f"{at}.228,02 €;{'Köln' if at % 2 else 'Groß'}" for at in range(100)]
    found = read_table(written(tmp_path, "\n".join(["a;b", *rows]), "cp1252"))
    assert found.frame["a"].iloc[0] == "0.228,02 €"


@pytest.mark.parametrize("name", ["Paweł", "Łask", "Łomża", "Żary"])
def test_letters_that_are_symbols_elsewhere_are_not_passed_over(tmp_path, name):
    found = read_table(written(tmp_path, f"a,b\n1,{name}\n2,x\n", "cp1250"))
    assert found.frame["b"].iloc[0] == name or "but may be" in found.notes[0]


def test_a_single_odd_byte_far_below_is_found(tmp_path):
    text = "a,town\n" + "1,Bonn\n" * 30_000 + "2,München\n"
    found = read_table(written(tmp_path, text, "cp1252"))
    assert found.frame["town"].iloc[-1] == "München"


def test_the_encoding_must_fit_the_whole_text(tmp_path):
    # 0x98 is no letter of Windows-1251
    content = table("cp1251").encode("cp1251") + b"1,\x98,1\n"
    (tmp_path / "t.csv").write_bytes(content)
    found = read_table(tmp_path / "t.csv")
    assert found.legacy_encoding not in (None, "cp1251")


def test_a_few_new_rows_are_read_like_the_training_table(tmp_path):
    train = read_table(written(tmp_path, table("cp1251"), "cp1251"))
    town = WORDS["cp1251"].split()[0]
    encoder = TableEncoder.fit(train.frame, target="kind")
    encoder = TableEncoder.from_dict({**encoder.to_dict(), "legacy_encoding": "cp1251"})
    new = encoder.read(written(tmp_path, f"x,{town}\n1,{town}\n", "cp1251", "new.csv"))
    assert new.frame[town].tolist() == [town]
    assert "Windows-1251" in new.notes[0]
    # and one in UTF-8 as that
    new = encoder.read(written(tmp_path, f"x,{town}\n1,{town}\n", "utf-8", "new.csv"))
    assert new.frame[town].tolist() == [town]
    assert new.notes == []


def test_a_stored_encoding_must_be_one(tmp_path):
    train = read_table(written(tmp_path, table("cp1251"), "cp1251"))
    record = TableEncoder.fit(train.frame, target="kind").to_dict()
    for forged in ("zlib", "utf-7", 3):
        with pytest.raises(SennError):
            TableEncoder.from_dict({**record, "legacy_encoding": forged})


def test_a_run_keeps_the_encoding_and_its_exported_code_reads_alike(tmp_path):
    text = table("cp1251", 60)
    data, run, out = written(tmp_path, text, "cp1251"), tmp_path / "run", tmp_path / "out"
    assert (
        main(["fit", str(data), "--target", "kind", "--epochs", "1", "--quiet", "--out", str(run)])
        == 0
    )
    assert senn.load_run(run).encoder.legacy_encoding == "cp1251"
    assert main(["export", str(run), "--to", "python", "--out", str(out)]) == 0
    code = {"__name__": "net", "__file__": str(out / "net.py")}
    exec((out / "net.py").read_text(), code)
    rows = code["read_rows"](str(data))
    assert [row[WORDS["cp1251"].split()[0]] for row in rows] == [
        line.split(",")[1] for line in text.splitlines()[1:]
    ]


def test_a_line_that_alone_is_not_utf8_is_named(tmp_path):
    lines = ["town,size", *[f"Köln,{at}" for at in range(20)]]
    path = tmp_path / "t.csv"
    path.write_bytes("\n".join(lines).encode() + "\nK\xf6ln,3\n".encode("latin-1"))
    with pytest.raises(SennError, match=r"line 22 of .* isn't UTF-8, as nearly all others are"):
        read_table(path)
    assert len(read_table(path, encoding="latin-1").frame) == 21
