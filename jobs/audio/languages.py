"""The code of a language, however a corpus writes it: two letters, or three where there are no two.

ISO 639-1 for the codes of ISO 639-2 and 639-3, for tags with regions and scripts (RFC 5646), and
for English names. What Whisper takes for one language is one: Bokmal, Mandarin, Filipino.
"""

from __future__ import annotations

import re

_UNKNOWN = frozenset(("und", "unk", "unknown", "none", "n/a"))
"""What corpora write where they do not know."""
_FOLDER = re.compile(r"[A-Za-z]{2,3}([-_]([A-Za-z]{4}|[A-Za-z]{2}|[0-9]{3}))*")


def language_code(said: str) -> str:
    """The code of ``en``, ``EN``, ``eng``, ``en-US``, ``English``, ``English (US)``.

    Another word is itself in small letters; empty where the corpus does not know.
    """
    name = said.strip().lower()
    if name in _UNKNOWN:
        return ""
    name = name.partition("(")[0].strip()
    if name in _NAMES:
        return _NAMES[name]
    word = re.split("[-_]", name)[0]
    return _SAME.get(word, word)


def language_of_folder(name: str) -> str:
    """The code, where the name of a folder is one, with its region and script, or a language's.

    The name itself where it is not: ``no-speech`` is no Norwegian.
    """
    is_code = _FOLDER.fullmatch(name) or name.lower() in _NAMES
    return language_code(name) if is_code else name


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


_NAMES = {
    name.replace("_", " "): code
    for name, code in _pairs("""
    afrikaans:af albanian:sq amharic:am arabic:ar armenian:hy assamese:as azerbaijani:az
    bashkir:ba basque:eu belarusian:be bengali:bn bosnian:bs breton:br bulgarian:bg burmese:my
    cantonese:yue castilian:es catalan:ca chinese:zh croatian:hr czech:cs danish:da dutch:nl
    english:en estonian:et faroese:fo farsi:fa filipino:tl finnish:fi flemish:nl french:fr
    galician:gl georgian:ka german:de greek:el gujarati:gu haitian:ht haitian_creole:ht hausa:ha
    hawaiian:haw hebrew:he hindi:hi hungarian:hu icelandic:is indonesian:id italian:it japanese:ja
    javanese:jv kannada:kn kazakh:kk khmer:km korean:ko lao:lo latin:la latvian:lv
    letzeburgesch:lb lingala:ln lithuanian:lt luxembourgish:lb macedonian:mk malagasy:mg malay:ms
    malayalam:ml maltese:mt mandarin:zh maori:mi marathi:mr moldavian:ro moldovan:ro mongolian:mn
    myanmar:my nepali:ne norwegian:no nynorsk:nn occitan:oc panjabi:pa pashto:ps persian:fa
    polish:pl portuguese:pt punjabi:pa pushto:ps romanian:ro russian:ru sanskrit:sa serbian:sr
    shona:sn sindhi:sd sinhala:si sinhalese:si slovak:sk slovenian:sl somali:so spanish:es
    sundanese:su swahili:sw swedish:sv tagalog:tl tajik:tg tamil:ta tatar:tt telugu:te thai:th
    tibetan:bo turkish:tr turkmen:tk ukrainian:uk urdu:ur uzbek:uz valencian:ca vietnamese:vi
    welsh:cy yiddish:yi yoruba:yo
    """).items()
}
_ISO_639_1 = _pairs("""
    aar:aa abk:ab afr:af aka:ak alb:sq amh:am ara:ar arg:an arm:hy asm:as ava:av ave:ae aym:ay
    aze:az bak:ba bam:bm baq:eu bel:be ben:bn bis:bi bod:bo bos:bs bre:br bul:bg bur:my cat:ca
    ces:cs cha:ch che:ce chi:zh chu:cu chv:cv cor:kw cos:co cre:cr cym:cy cze:cs dan:da deu:de
    div:dv dut:nl dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi
    fra:fr fre:fr fry:fy ful:ff geo:ka ger:de gla:gd gle:ga glg:gl glv:gv gre:el grn:gn guj:gu
    hat:ht hau:ha heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu hye:hy ibo:ig ice:is ido:io iii:ii
    iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja kal:kl kan:kn kas:ks kat:ka
    kau:kr kaz:kk khm:km kik:ki kin:rw kir:ky kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo lat:la
    lav:lv lim:li lin:ln lit:lt ltz:lb lub:lu lug:lg mac:mk mah:mh mal:ml mao:mi mar:mr may:ms
    mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na nav:nv nbl:nr nde:nd ndo:ng nep:ne
    nld:nl nno:nn nob:nb nor:no nya:ny oci:oc oji:oj ori:or orm:om oss:os pan:pa per:fa pli:pi
    pol:pl por:pt pus:ps que:qu roh:rm ron:ro rum:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk
    slo:sk slv:sl sme:se smo:sm sna:sn snd:sd som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss
    sun:su swa:sw swe:sv tah:ty tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tib:bo tir:ti ton:to
    tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug ukr:uk urd:ur uzb:uz ven:ve vie:vi vol:vo wel:cy
    wln:wa wol:wo xho:xh yid:yi yor:yo zha:za zho:zh zul:zu
""")
_SAME = _ISO_639_1 | _pairs("""
    als:sq arb:ar azj:az cmn:zh ekk:et fil:tl in:id iw:he ji:yi jw:jv khk:mn lvs:lv mo:ro nb:no
    nob:no npi:ne ory:or pbt:ps pes:fa plt:mg prs:fa swh:sw uzn:uz ydd:yi zsm:ms
""")
