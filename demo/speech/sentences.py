"""Training sentences: our own written ones (`sentences_plain.txt`), and templates filled with words.

All text is our own, so it has the project's licence. The content words of the templates come from short
lists; some of them are replaced by words of a pronouncing lexicon, so that many sounds occur in many
contexts. No written sentence shares five words in a row with a test sentence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

WORDS = {
    "noun": """time year people way day man thing woman life child world school family student group
    country problem hand part place case week company system program question work night point home
    water room mother area money story fact month lot right study book eye job word business issue side
    kind head house service friend father power hour game line end member law car city name president
    team minute idea kid body back parent face others level office door health person art war history
    party result change morning reason research girl guy moment air teacher force education garden river
    mountain kitchen window table chair bridge street market train station ticket letter phone camera
    picture music song piano guitar doctor nurse farmer driver captain soldier horse dog cat bird fish
    apple bread butter cheese coffee sugar soup dinner breakfast lunch bottle glass plate knife spoon
    shirt jacket shoe hat pocket button paper pencil paint brush color light shadow storm cloud wind
    rain snow summer winter spring autumn forest island beach ocean boat ship engine wheel road corner
    church castle village farm field hill valley lake stone metal wood gold silver iron fire smoke ice
    voice sound noise silence dream sleep health heart blood bone skin finger shoulder knee mouth tooth
    measure pleasure treasure jungle giant judge badge orange sponge language village message package
    youth truth path breath birthday month clothes weather feather leather brother uncle cousin daughter
    choice toy coin joint oil cow town crowd mouse owl flower hour cure tour poor square bear chair
    computer keyboard screen network battery signal machine robot planet rocket moon sun star""",
    "verb": """found saw took made knew wanted gave used told called tried asked needed left kept
    began showed heard played moved liked lived held brought wrote sat stood lost paid met ran changed
    watched followed stopped opened walked won taught offered remembered considered bought served sent
    built stayed fell cut reached killed raised passed sold decided returned explained hoped carried
    broke received agreed supported hit produced ate covered caught drew chose painted washed cleaned
    cooked fixed pushed pulled threw dropped lifted counted measured joined hid shook drove rode flew
    swam sang drank wore tore grew burned touched smelled tasted enjoyed avoided destroyed finished""",
    "adj": """good new first last long great little own other old big high different small large next
    early young important few public bad same able quiet loud bright dark warm cold hot fresh dry wet
    soft hard heavy light quick slow rich poor happy sad angry brave calm clever foolish gentle honest
    kind lazy lucky nervous polite proud rude silly strange tired weak wise yellow green blue red brown
    purple orange white black gray huge tiny thin thick wide narrow deep shallow round square smooth
    rough sharp empty full clean dirty cheap expensive beautiful ugly famous usual special southern""",
    "name": """John Mary Peter Anna George Emma Charles Sophie Thomas Alice Henry Julia Robert Laura
    William Sarah James Kate David Helen Michael Ruth Daniel Grace Joseph Clara Edward Lucy Frank Rose
    Paul Jane Mark Susan Jack Nancy Victor Irene Oliver Zoe""",
    "place": """London Paris Boston Chicago Dublin Vienna Texas Japan Norway Egypt Canada Brazil
    Scotland Rome Berlin Sydney Denver Oxford Madrid Houston""",
    "adv": """slowly quickly quietly carefully suddenly finally always never often sometimes usually
    today yesterday again soon together outside inside upstairs nearby already almost early late
    everywhere somehow gladly badly nicely really once twice""",
    "prep": """in on under over behind beside near across through around above below against
    between without along toward inside before after about from with""",
    "num": """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    twenty thirty forty fifty sixty seventy eighty ninety""",
}

TEMPLATES = """The {adj} {noun} {verb} the {noun}.|{name} {verb} the {adj} {noun} {prep} the {noun}.
I {verb} a {noun} and a {noun} {adv}.|We {verb} it {prep} the {adj} {noun}.|Where is the {adj} {noun}?
Did you see the {noun} {prep} the {noun}?|Please put the {noun} {prep} the {noun}.|She said the {noun} was {adj}.
He {verb} {num} {adj} {noun}s {prep} {place}.|There are {num} {noun}s in the {noun}.|My {noun} is very {adj}.
{name} and {name} {verb} each other {adv}.|It was a {adj} and {adj} {noun}.|What a {adj} {noun}!
They {verb} their {noun} before the {noun}, and then they {verb} the {noun}.|Could you bring me the {adj} {noun}?
If the {noun} is {adj}, we will go to {place}.|I think that {name} {verb} the {noun} {adv}.|Not every {noun} is {adj}.
You should never have {verb} that {noun}.|The {noun} of the {noun} {verb} a {adj} {noun} {adv}.|Why was the {noun} so {adj}?
When the {noun} {verb} us, {name} was {prep} the {noun}.|This {noun} costs {num} dollars.|Who {verb} my {noun}?
A {noun}, a {noun}, and a {adj} {noun} were {prep} the {noun}.|Thank you for the {adj} {noun}.|Good morning, {name}.
{name} lives in {place} with a {adj} {noun}.|Have you ever {verb} a {noun} {prep} {place}?|Let us meet {prep} the {noun} at {num}.
It is {num} minutes past {num}.|He does not like the {noun}, but he {verb} the {noun}.|Her {noun} {verb} him {adv}.
As soon as we {verb} the {noun}, the {noun} became {adj}.|I would like to have a {adj} {noun}, please.|Nobody {verb} the {noun}.
{adj} {noun}s and {adj} {noun}s.|The {noun} {verb}.|She {verb} {adv} {prep} the {adj} {noun}, {prep} the {noun}.
We should go to {place} and look for the {noun} {adv}.|It might be {adj}, or it might be {adj}.|How many {noun}s did {name} have?
I don't know why the {noun} isn't {adj} today.|Can't you hear that {adj} {noun}?|They're waiting for you at the {noun}.
The {noun} which {name} {verb} was more {adj} than ours.|Turn left at the {noun}, then take the second {noun}.
Tomorrow we'll be in {place}, and on Friday in {place}.|It takes {num} hours to get from {place} to {place}.
Whose {noun} is this, and what does it do?|Ladies and gentlemen, welcome to the {noun} of {place}.
{num} hundred and {num} {noun}s were sold in {place}.|The number is {num} {num} {num} {num}.|Call me at {num} thirty.
Although the {noun} was {adj}, nobody {verb} it.|You can always count on {name}, can't you?|That's not what I meant.
Neither the {noun} nor the {noun} could be found.|She has been working there since the {adj} {noun}.
How {adj} the {noun} looks this evening!|In the end, {name} chose the {adj} one.|Listen, I have something to tell you.
Every {noun} needs a {noun}, {name} said.|He'd rather be {adj} than {adj}.|What would you do with a {adj} {noun}?
The first {noun} is free, the second costs {num} pounds.|We haven't seen {name} for {num} years.|Excuse me, is this seat taken?
By the time the {noun} arrived, everyone had gone home.|Both of them want to be {noun}s when they grow up.
Maybe, but I wouldn't try it with that {noun}.|Yes, of course.|No, thank you.|I'm sorry, I didn't hear the {noun}.
There used to be a {adj} {noun} where the {noun} is now.|{name} thought about the {noun} for a long while.
The {adj} {noun}, the {adj} {noun} and the {noun} all belong to {name}.|Which of these {noun}s do you like best?
Between you and me, the {noun} never worked.|Just a moment, please.|Take your {noun} with you.|See you in {place}!
It's getting {adj}, so close the {noun} and light the {noun}.|Whenever it rains, the {noun} smells like {noun}."""

PLAIN = Path(__file__).parents[1] / "sentences_plain.txt"
PLAIN_SHARE = 0.7


def templates() -> list[str]:
    return [part for line in TEMPLATES.splitlines() for part in line.split("|")]


def fill(template: str, rng: random.Random, rare: Sequence[str], rare_share: float) -> str:
    """Replace every {slot}; a share of nouns and adjectives comes from the lexicon."""

    def word(match: re.Match[str]) -> str:
        kind = match.group(1)
        if kind in ("noun", "adj") and rng.random() < rare_share:
            return rng.choice(rare)
        return rng.choice(WORDS[kind].split())

    text = re.sub(r"\{(\w+)\}", word, template)
    return text[0].upper() + text[1:]


def sentences(
    count: int, rare: Sequence[str], seed: int, *, rare_share: float = 0.3, longest: int = 15
) -> Iterator[str]:
    """Yield `count` different sentences of at most `longest` words."""
    rng, seen, shapes = random.Random(seed), set[str](), templates()
    while len(seen) < count:
        text = fill(rng.choice(shapes), rng, rare, rare_share)
        if text not in seen and len(text.split()) <= longest:
            seen.add(text)
            yield text


def texts(count: int, rare: Sequence[str], seed: int) -> list[str]:
    """`count` training texts: a draw of the written sentences, the rest from templates, in random order."""
    rng = random.Random(seed)
    plain = rng.sample(PLAIN.read_text(encoding="utf-8").splitlines(), round(PLAIN_SHARE * count))
    out = plain + list(sentences(count - len(plain), rare, seed))
    rng.shuffle(out)
    return out
