"""The tokens of the Penn Treebank lexer: what they look like, which one wins, and how each is written.

The token classes and their order of precedence are those of PTBTokenizer in Stanford CoreNLP 3.4.1, the version with
which COCO captions are scored. The longest match wins, counted with the context that a rule asks for behind its token;
on a tie the earlier rule. See `lazy_dfa` for the syntax of the expressions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from beit3_bench.tasks.metrics import ptb_characters as characters
from beit3_bench.tasks.metrics.lazy_dfa import Automaton, Expressions

_SETS = {
    "letter": characters.letter,
    "word_letter": characters.word_letter,
    "digit": characters.digit,
    "number_digit": characters.number_digit,
    "uppercase": characters.uppercase,
    "symbol": characters.symbol,
    "sentence_mark": characters.sentence_mark,
    "anything": characters.anything,
}


def _words(text: str, first_letter_as_is: str = "") -> str:
    """An alternative per word; those of ``first_letter_as_is`` match only with the case of their first letter."""
    exact = [f"[{word[0]}]{word[1:]}" for word in first_letter_as_is.split()]
    return "|".join(text.split() + exact)


_TEXTS = {
    # --- white space
    "space": "[ \t\u00a0\u2000-\u200a\u3000]",
    "newline": "\r|\r?\n|[\u2028\u2029\u000b\u000c\u0085]",
    "gap": "{space}|{newline}",
    # --- markup
    "entity_letter": "&[aeiouAEIOU](acute|grave|uml);",
    "entity_mark": "&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);",
    "tag_name": "[A-Za-z][A-Za-z0-9_:.\\-]*",
    "attribute": "{tag_name}|{tag_name} *= *('[^']*'|\"[^\"]*\")",
    "tag": "<([!?][A-Za-z\\-][^>\r\n]*|{tag_name}( +{attribute})* */?|/{tag_name}) *>",
    "ampersand": "&amp;",
    # --- quotes
    "apostrophe": "['\u0092\u2019]|&apos;",
    "any_apostrophe": "{apostrophe}|[`\u0091\u2018\u201b]",
    "double_quote": '"|&quot;',
    "quotes": "{apostrophe}|''|[`\u2018\u2019\u201a-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{1,2}",
    # --- words
    "wl": "({word_letter}|{entity_letter})",
    "wld": "({wl}|{number_digit})",
    "word": "{wl}{wld}*([.!?]{wl}{wld}*)*",
    "clitic": "{apostrophe}([msdMSD]|re|ve|ll)",
    "word_before_not": "[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*",
    "not": "n{any_apostrophe}t",
    "word_with_apostrophe": "{apostrophe}(n{apostrophe}?|em|[2-9]0s|till?|cause)"
    "|([lLdDjJ]|Dunkin|somethin|ol){apostrophe}"
    "|[A-HJ-XZn]{any_apostrophe}{letter}{letter}+"
    "|{letter}+[aeiouyAEIOUY]{any_apostrophe}[aeiouA-Z]{letter}*"
    "|cont'd\\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|O{any_apostrophe}o",
    "ld": "({letter}|{digit})",
    "elided": "([dDoOlL]{any_apostrophe}{ld})?{ld}+",
    "hyphen": "[\\-_\u058a\u2010\u2011]",
    "thing": "{elided}({hyphen}{elided})*",
    "ampersand_thing": "[A-Z]+(([+&]|{ampersand})[A-Z]+)+",
    "slash_part": "[A-Za-z0-9]+(-[A-Za-z]+){0,2}",
    "slash_thing": "{slash_part}(\\\\?/{slash_part}){1,2}",
    "hyphen_thing": "[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(-([A-Za-z0-9\u00ad]+|{dotted_acronym}\\.))+",
    "special": "-(RRB|LRB|RCB|LCB|RSB|LSB)-|C\\.D\\.s|pro-|anti-|S(&|{ampersand})(P-500|Ls)"
    "|Cap{apostrophe}n|c{apostrophe}est",
    # --- addresses
    "full_url": 'https?://[^ \t\n\u000c\r"<>|(){}]+[^ \t\n\u000c\r"<>|.!?(){},\\-]',
    "host_part": '[^ \t\n\u000c\r"<>|.!?(){},]+\\.',
    # no digits, capitals or most punctuation in a host without www
    "plain_host_part": "[^ \t\n\u000c\r\"`'<>|.!?(){},-_$]+\\.",
    "url_path": '/[^ \t\n\u000c\r"<>|()]+[^ \t\n\u000c\r"<>|.!?(){},\\-]',
    "likely_url": "(www\\.{host_part}+[a-zA-Z]{2,4}|{plain_host_part}+(com|net|org|edu)){url_path}?",
    "mail_host": '[^ \t\n\u000c\r"<>|(){}.\u00a0]+',
    "email": '(&lt;|<)?[a-zA-Z0-9][^ \t\n\u000c\r"<>|()\u00a0{}]*@({mail_host}\\.)*{mail_host}(&gt;|>)?',
    "handle": "@[a-zA-Z_][a-zA-Z_0-9]*|#{wl}+",
    "file_name": "{wld}+(\\.{wld}+)*\\.("
    + _words(
        "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps "
        "py sql tar txt wav x xml zip"
    )
    + ")",
    # --- numbers
    "date": "{number_digit}{1,2}[\\-/]{number_digit}{1,2}[\\-/]{number_digit}{2,4}",
    "number": "[\\-+]?({number_digit}+|{number_digit}*([.:,\u00ad\u066b\u066c]{number_digit}+)+)",
    "raised_number": "[\u207a\u207b\u208a\u208b]?([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)",
    "fraction": "({number_digit}{1,4}[\\- \u00a0])?{number_digit}{1,4}(\\\\?/|\u2044){number_digit}{1,4}",
    "phone": "(\\([0-9]{2,3}\\)[ \u00a0]?|(\\+\\+?)?([0-9]{2,4}[\\- \u00a0])?[0-9]{2,4}[\\- \u00a0])"
    "[0-9]{3,4}[\\- \u00a0]?[0-9]{3,5}"
    "|((\\+\\+?)?[0-9]{2,4}\\.)?[0-9]{2,4}\\.[0-9]{3,4}\\.[0-9]{3,5}",
    "dollar": "[A-Z]*$|#",
    "currency": "[\u00a2-\u00a5\u0080\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]",
    # --- abbreviations
    "acronym": "[A-Za-z](\\.[A-Za-z])*|{country_acronym}",
    "dotted_acronym": "[A-Za-z](\\.[A-Za-z])+|{country_acronym}",
    "country_acronym": "(Canada|Sino|Korean|EU|Japan|non)-U\\.S|U\\.S\\.-(U\\.K|U\\.S\\.S\\.R)",
    # usually before a lower-case word: a capital behind them starts a sentence
    "ends_sentence": "("
    + _words(
        "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thurs Fri "
        "Ala Ariz Calif Colo Conn Ct Dak Fla Ga Ind Kans? Ky Md Mich Minn Mo Mont Neb Nev Okla Penn Tenn Va Vt "
        "Wisc? Wyo Inc Cos? Corp Pp?t[ye]s? Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys tel est ext sq "
        "Jr Sr Bros (Ed|Ph)\\.D Blvd Rd Esq etc al seq Bldg",
        "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash",
    )
    + ")\\.",
    # usually before a capitalised word
    "title": _words(
        "Mr Mrs Ms Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl Pvt Capt Ste? Ave Pres "
        "Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Mt Ft Adj Adv Asst Assoc Ens Insp Mlle Mme Msgr Sfc "
        "vs Alex Wm Jos Cie a\\.k\\.a cf TREAS Ph Invt Elec Natl Dept",
        "Miss",
    )
    + "|M[ft]g|{acronym}",
    "before_number": "(" + _words("ca figs? prop nos? art bldg pp op") + ")\\.",
    # words behind an acronym that make its period the end of a sentence, spelt with a capital
    "starts_sentence": _words(
        "",
        "About According Additionally After An A As At But Earlier He Her Here However If In It Last Many More Mr\\. "
        "Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We When While "
        "What Yet You",
    ),
    # --- punctuation and symbols
    "dash": "&(MD|mdash|ndash);|[\u0096\u0097\u2013-\u2015]",
    "ellipsis": "\\.{3,5}|(\\.[ \u00a0]){2,4}\\.|[\u0085\u2026]",
    "inner_mark": "[,;:\u3001]",
    "stars": "\\*+|(\\\\\\*){1,3}",
    "smiley": "[<>]?[:;=][\\-o*']?[()DPdpO\\\\{@|\\[\\]]",
    # the first kind runs from "x.[^x=" to the next "<>]", over anything
    "asian_smiley": "[\\^x=~<>]\\.\\[\\^x=[^<]*<>]"
    "|[\\-\\^x=~<>']_[\\-\\^x=~<>']|\\([\\-\\^x=~<>'][_.]?[\\-\\^x=~<>']\\)"
    "|\\([\\^x=~<>']-[\\^x=~<>'`]\\)",
}


@dataclass(frozen=True)
class Rule:
    """A token class.

    body: the token.  behind: what has to follow it ("" for nothing).
    action: how the token is written, a function name of `ptb_tokenizer` without its underscore, or ``"=text"``.
    back: characters of the token that are left for the next one (before the action sees it).
    """

    body: str
    behind: str = ""
    action: str = "as_is"
    back: int = 0


RULES = (
    Rule("c\\+\\+|(c|f)#"),
    Rule("cannot", back=3),
    Rule("'twas", back=3),
    Rule("'tis|gonna|gotta|lemme|gimme|wanna", back=2),
    Rule("{tag}", action="joined"),
    Rule("{dash}", action="=--"),
    Rule("{ampersand}", action="plain_ampersand"),
    Rule("{entity_mark}"),
    Rule("{word}", "{clitic}", action="no_soft_hyphen"),
    Rule("{word_before_not}", "{not}", action="no_soft_hyphen"),
    Rule("{word}", action="no_soft_hyphen"),
    Rule("{word_with_apostrophe}"),
    Rule("y{apostrophe}", "{letter}"),
    Rule("{full_url}|{likely_url}|{email}|{handle}"),
    Rule("{clitic}|{not}", "[^A-Za-z]", action="closing_quote"),
    Rule("{date}"),
    Rule("{number}", action="no_soft_hyphen"),
    Rule("{raised_number}"),
    Rule("{fraction}", action="joined"),
    Rule("[\u00bc-\u00be\u2153-\u215e]", action="fraction"),
    Rule("{special}", action="plain_ampersand"),
    Rule("{slash_thing}|{dollar}"),
    Rule("{currency}", action="currency"),
    Rule("{acronym}\\.", "{gap}+({starts_sentence}|{tag}){gap}", action="acronym_before_sentence"),
    Rule("{before_number}", "{gap}?{digit}"),
    Rule("(pt[eyEY]|co)\\.", "{space}(ltd|lim)"),
    Rule("{ends_sentence}", "{gap}({gap}|{uppercase}|{tag})", action="period_twice"),
    Rule("{ends_sentence}", "{anything}{anything}"),
    Rule("{ends_sentence}", action="period_twice"),
    Rule("{title}\\."),
    Rule("{title}", "{space}"),
    Rule("{acronym}", "{gap}"),
    Rule("{apostrophe}[0-9][0-9]", "{gap}"),
    Rule("{file_name}", "{gap}|[.?!,]"),
    Rule("{word}\\.", "{inner_mark}", action="no_soft_hyphen"),
    Rule("{phone}", action="phone"),
    Rule("{double_quote}", "[A-Za-z0-9$]", action="opening_quote"),
    Rule("{double_quote}", action="closing_quote"),
    Rule("\u007f", action="skip"),
    Rule("<|&lt;", action="=<"),
    Rule(">|&gt;", action="=>"),
    Rule("{smiley}", "[^A-Za-z0-9]", action="brackets"),
    Rule("{asian_smiley}", action="brackets"),
    Rule("\\{", action="=-LCB-"),
    Rule("\\}", action="=-RCB-"),
    Rule("\\[", action="=-LSB-"),
    Rule("]", action="=-RSB-"),
    Rule("\\(", action="=-LRB-"),
    Rule("\\)", action="=-RRB-"),
    Rule("-+", action="hyphens"),
    Rule("{ellipsis}", action="=..."),
    Rule("@+|#+|_+|{stars}|{inner_mark}|[?!]+|{sentence_mark}|=|/"),
    Rule("{hyphen_thing}\\.", "{inner_mark}", action="no_soft_hyphen"),
    Rule("{hyphen_thing}", action="no_soft_hyphen"),
    Rule("{thing}\\.", "{inner_mark}"),
    Rule("{thing}"),
    Rule("{ampersand_thing}\\.", "{inner_mark}", action="plain_ampersand"),
    Rule("{ampersand_thing}", action="plain_ampersand"),
    Rule("'", "[A-Za-z][^ \t\n\r\u00a0]", action="opening_quote"),
    Rule("{clitic}|{not}|{quotes}", action="closing_quote"),
    Rule("<<|>>|{symbol}"),
    Rule("\u0000|{space}+|[\u200b\u200e\u200f\ufeff]|&nbsp;", action="skip"),
    Rule("{newline}", action="skip"),
)


@dataclass(frozen=True)
class Grammar:
    """The compiled rules: ``automaton`` finds rule and end, ``bodies`` and ``behinds`` where the context begins."""

    automaton: Automaton
    bodies: dict[int, Automaton]
    behinds: dict[int, Automaton]


@lru_cache(maxsize=1)
def grammar() -> Grammar:
    """Compile the rules; once per process, some tens of milliseconds."""
    expressions = Expressions(_SETS, _TEXTS)
    whole, bodies, behinds = [], {}, {}
    for index, rule in enumerate(RULES):
        body = expressions.parse(rule.body)
        if rule.behind:
            behind = expressions.parse(rule.behind)
            bodies[index], behinds[index] = Automaton([body]), Automaton([behind])
            body = ("cat", [body, behind])
        whole.append(body)
    return Grammar(Automaton(whole), bodies, behinds)
