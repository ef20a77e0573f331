"""Tables of what is written short: titles, abbreviations, units, currencies, acronyms, ends of addresses."""

from __future__ import annotations


def listed(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


TITLES = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor",
    "st": "saint", "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant",
    "sgt": "sergeant", "rev": "reverend", "gov": "governor", "sen": "senator",
    "rep": "representative", "hon": "honorable", "mt": "mount", "ft": "fort", "pres": "president",
    "cmdr": "commander", "maj": "major", "messrs": "messers",
}  # fmt: skip
"""What an abbreviation with a full stop means before a name."""
PLAIN_TITLES = ("Mr", "Mrs", "Ms", "Dr", "Prof")
"""Titles that are also written without a full stop."""
ABBREVIATIONS = {
    "jr": "junior", "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately",
    "dept": "department", "inc": "incorporated", "ltd": "limited", "co": "company",
    "corp": "corporation", "ave": "avenue", "blvd": "boulevard", "rd": "road", "hwy": "highway",
    "bros": "brothers", "assn": "association", "govt": "government",
    "univ": "university", "intl": "international", "esq": "esquire", "misc": "miscellaneous",
    "jan": "January", "feb": "February", "aug": "August",
    "sept": "September", "oct": "October", "nov": "November", "dec": "December",
    "e.g": "for example", "i.e": "that is", "a.k.a": "also known as", "cf": "compare",
}  # fmt: skip
"""What is written with a full stop anywhere."""
ENDING = frozenset(["etc", "jr", "sr", "inc", "ltd", "co", "corp", "esq", "bros"])
"""Abbreviations that often end a sentence."""
AT_THE_END = {"dr": "drive", "st": "street"}
"""What two titles mean after a name."""
BEFORE_NUMBER = {
    "no": "number", "nos": "numbers", "fig": "figure", "figs": "figures", "vol": "volume",
    "vols": "volumes", "p": "page", "pp": "pages", "ch": "chapter", "chap": "chapter",
    "sec": "section", "eq": "equation", "para": "paragraph", "ver": "version",
    "ext": "extension", "tel": "telephone", "est": "established", "ca": "circa", "apt": "apartment",
}  # fmt: skip
"""What is short for a word only before a number."""
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
SHORT_MONTHS = {month[:3].lower(): month for month in MONTHS if month != "May"} | {"sept": "September"}
SHORT_DAYS = {
    "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday",
    "Thur": "Thursday", "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday",
}  # fmt: skip
WORDS_TOO = frozenset(["Sat", "Sun"])
"""Short names of days that are also words."""

# -- units ------------------------------------------------------------------------------------------

LENGTHS = {
    "km": "kilometer", "m": "meter", "dm": "decimeter", "cm": "centimeter", "mm": "millimeter",
    "μm": "micrometer", "um": "micrometer", "nm": "nanometer", "mi": "mile", "yd": "yard",
    "ft": "foot", "in": "inch",
}  # fmt: skip
UNITS = LENGTHS | {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "μg": "microgram", "mcg": "microgram",
    "t": "ton", "lb": "pound", "lbs": "pound", "oz": "ounce", "fl oz": "fluid ounce",
    "fl. oz": "fluid ounce", "L": "liter", "l": "liter", "dL": "deciliter", "cl": "centiliter",
    "ml": "milliliter", "mL": "milliliter", "μL": "microliter", "gal": "gallon", "qt": "quart",
    "qts": "quart",
    "tsp": "teaspoon", "tbsp": "tablespoon", "ha": "hectare", "yds": "yard",
    "mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour",
    "kmph": "kilometer per hour", "rpm": "revolution per minute", "bpm": "beat per minute",
    "mpg": "mile per gallon", "fps": "frame per second", "dpi": "dot per inch",
    "ppm": "part per million", "psi": "pound per square inch",
    "hz": "hertz", "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "THz": "terahertz",
    "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "tb": "terabyte", "PB": "petabyte",
    "Kb": "kilobit", "Mb": "megabit", "Gb": "gigabit", 
    "kbit": "kilobit", "Mbit": "megabit", "Gbit": "gigabit", "KiB": "kibibyte", "MiB": "mebibyte",
    "GiB": "gibibyte", "bps": "bit per second", "kbps": "kilobit per second",
    "mbps": "megabit per second", "gbps": "gigabit per second", "tbps": "terabit per second",
    "MBps": "megabyte per second", "GBps": "gigabyte per second",
    "yr": "year", "yrs": "year", "wk": "week", "wks": "week", "h": "hour", "hr": "hour",
    "hrs": "hour", "min": "minute", "mins": "minute", "s": "second", "sec": "second",
    "secs": "second", "ms": "millisecond", "μs": "microsecond", "ns": "nanosecond",
    "W": "watt", "kw": "kilowatt", "mW": "milliwatt", "MW": "megawatt", "mw": "megawatt",
    "GW": "gigawatt", "Wh": "watt hour", "kwh": "kilowatt hour", "MWh": "megawatt hour",
    "V": "volt", "kV": "kilovolt", "mV": "millivolt", "A": "amp", "mA": "milliamp",
    "Ah": "amp hour", "mAh": "milliamp hour", "Ω": "ohm", "kΩ": "kilohm", "MΩ": "megohm",
    "J": "joule", "kJ": "kilojoule", "MJ": "megajoule", "cal": "calorie", "kcal": "kilocalorie",
    "N": "newton", "kN": "kilonewton", "Nm": "newton meter", "Pa": "pascal", "hPa": "hectopascal",
    "kPa": "kilopascal", "MPa": "megapascal", "mmHg": "millimeter of mercury", "eV": "electron volt",
    "keV": "kiloelectron volt", "MeV": "megaelectron volt", "hp": "horsepower", "dB": "decibel",
    "dBA": "decibel", "lm": "lumen", "lx": "lux", "mol": "mole", "px": "pixel", "MP": "megapixel",
    "%": "percent", "‰": "per mille", "°": "degree", "°C": "degree Celsius",
    "° C": "degree Celsius", "°F": "degree Fahrenheit", "° F": "degree Fahrenheit",
    "sq": "square",
    **{f"{short} {unit}": f"{long} {name}" for unit, name in LENGTHS.items()
       for short, long in (("sq", "square"), ("sq.", "square"), ("cu", "cubic"), ("cu.", "cubic"))},
}  # fmt: skip
"""Units after a number. One of several letters is also found in other capitals if no unit is written so."""
ATTACHED_IS_OTHER = frozenset(["s", "t", "N", "J"])
"""Units that need a space before them: 30s are thirties, and a 3A may be a class."""
NEEDS_A_HINT = {
    "in": r"[.,;!?]|$|\s(?:wide|long|tall|high|deep|thick|in diameter|by)\b",
    "A": r"\s(?:fuse|circuit|breaker|current|charger|socket|plug|supply|at|of current)\b",
    "N": r"\s(?:force|of force)\b|$",
    "W": r"(?!\s(?:\d|[A-Z]))",
    "t": r"\s(?:of|truck|load|crane)\b|\.?$",
    "m": r"(?!\s(?:dollar|euro|pound))",
}
"""What must follow a unit that is also a word or a name."""
DOTTED = frozenset([
    "in", "ft", "yd", "mi", "oz", "lb", "lbs", "gal", "qt", "tsp", "tbsp", "hr", "hrs", "min", "mins",
    "sec", "secs", "yr", "yrs", "wk", "wks", "km", "cm", "mm", "kg", "mg", "ml", "cal", "yds",
])  # fmt: skip
"""Units that are also written with a full stop."""
DENOMINATORS = {
    "h": "hour", "hr": "hour", "hour": "hour", "min": "minute", "minute": "minute", "s": "second",
    "sec": "second", "second": "second", "day": "day", "d": "day", "week": "week", "wk": "week",
    "month": "month", "mo": "month", "year": "year", "yr": "year", "kg": "kilogram", "g": "gram",
    "lb": "pound", "L": "liter", "l": "liter", "dL": "deciliter", "dl": "deciliter",
    "mL": "milliliter", "ml": "milliliter", "gal": "gallon", "m": "meter", "km": "kilometer",
    "cm": "centimeter", "mile": "mile", "mi": "mile", "ft": "foot", "person": "person",
    "night": "night", "mol": "mole", "GB": "gigabyte", "kWh": "kilowatt hour", "user": "user",
    "unit": "unit", "item": "item", "piece": "piece", "oz": "ounce", "K": "kelvin", "W": "watt",
    "word": "word", "page": "page", "seat": "seat", "sq ft": "square foot", "100km": "100 kilometers",
    "100 km": "100 kilometers",
}  # fmt: skip
"""What may follow a unit or a price and a slash."""
PLURALS = {
    "foot": "feet", "inch": "inches", "hertz": "hertz", "kilohertz": "kilohertz", "megahertz": "megahertz",
    "gigahertz": "gigahertz", "terahertz": "terahertz", "percent": "percent", "per": "per", "lux": "lux",
    "horsepower": "horsepower",
}  # fmt: skip
NOT_DESCRIBED = listed("""
a about after again ago all and are around as at away back because before below but by can did do
does down each every for from had has have if in into is it left less may more now of off on only or
out over per plus so than that the then there to today tomorrow under until up was were when where
which while who will with would yesterday
""")
"""Words after a measure that it does not describe: "a 5 meter pole", but "a 5 meters of"."""

# -- money ------------------------------------------------------------------------------------------

DOLLAR = ("dollar", "dollars", "cent", "cents")
CURRENCIES = {
    "$": DOLLAR,
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "R$": ("real", "reais", "centavo", "centavos"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₺": ("lira", "lira", "", ""),
    "₿": ("bitcoin", "bitcoins", "", ""),
    "₫": ("dong", "dong", "", ""),
    "฿": ("baht", "baht", "", ""),
    "₴": ("hryvnia", "hryvnias", "", ""),
    "₦": ("naira", "naira", "", ""),
    "₱": ("peso", "pesos", "", ""),
    "₪": ("shekel", "shekels", "", ""),
}
"""One, many, and a hundredth in one and many; empty where hundredths are read as decimals."""
CODES = {
    "USD": "U S dollar", "EUR": "euro", "GBP": "pound", "JPY": "yen",
    "CHF": "Swiss franc", "CAD": "Canadian dollar", "AUD": "Australian dollar", "INR": "Indian rupee",
    "CNY": "Chinese yuan", "SEK": "Swedish krona", "NOK": "Norwegian krone", "DKK": "Danish krone",
    "NZD": "New Zealand dollar", "MXN": "Mexican peso", "PLN": "Polish zloty", "BTC": "bitcoin",
}  # fmt: skip
SIGN_OF_CODE = {"USD": "$", "EUR": "€", "GBP": "£", "CAD": "$", "AUD": "$", "NZD": "$"}
"""Currencies whose hundredths are read as such."""
MANY_OF_CODE = {
    "JPY": "yen", "CNY": "Chinese yuan", "SEK": "Swedish kronor", "NOK": "Norwegian kroner",
    "DKK": "Danish kroner",
}  # fmt: skip
COUNTRIES = {
    "US": "U S", "CA": "Canadian", "C": "Canadian", "AU": "Australian", "A": "Australian",
    "NZ": "New Zealand", "HK": "Hong Kong", "S": "Singapore",
}  # fmt: skip
"""What stands directly before a dollar sign."""
SCALES = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million",
    "MM": "million", "mil": "million", "B": "billion", "b": "billion", "bn": "billion", "Bn": "billion",
    "T": "trillion", "tn": "trillion", "trn": "trillion",
}  # fmt: skip

# -- signs ------------------------------------------------------------------------------------------

SYMBOLS = {
    "&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ",
    "°C": " degrees Celsius", "°F": " degrees Fahrenheit", "°": " degrees", "€": " euros ",
    "£": " pounds ", "$": " dollars ", "¥": " yen ", "×": " times ", "÷": " divided by ",
    "±": " plus or minus ", "≤": " less than or equal to ", "≥": " greater than or equal to ",
    "≠": " does not equal ", "≈": " approximately ", "→": " to ", "⇒": " to ", "∞": " infinity ",
    "√": " square root of ", "π": " pi ", "©": " copyright ", "§": " section ", "ß": "ss", "æ": "ae",
    "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "ð": "th",
    "þ": "th", "Þ": "Th", "Ð": "Th", "Đ": "D", "ẞ": "Ss", "ı": "i",
}  # fmt: skip
PUNCTUATION = str.maketrans({
    "‘": "'", "’": "'", "‛": "'", "`": "'", "´": "'", "‐": "-", "‑": "-", "−": "-", "–": "–",
    "—": ", ", "―": ", ", "。": ".", "、": ", ", "，": ", ", "！": "!", "？": "?", "：": ":", "；": ";",
    "ı": "i", "İ": "I", "¡": " ", "¿": " ", "⁄": "/", "(": ", ", ")": ", ", "[": ", ", "]": ", ",
})  # fmt: skip

# -- addresses --------------------------------------------------------------------------------------

DOMAINS = listed("""
com org net edu gov mil int info biz dev app blog shop store site online tech cloud xyz io ai co uk
us de fr es nl eu ca au nz jp cn ru br ch se dk pl tv me
""")
"""Last parts of a host's name."""
COUNTRY_WORDS = frozenset(["us", "es", "de", "me"])
"""Those that are also words, so that a missing space is likelier than a host: they need `www.` or a path."""
EXTENSIONS = listed("""
txt pdf doc docx xls xlsx ppt pptx csv tsv json xml yaml yml toml ini cfg conf log md rst html htm
css js ts jsx tsx py ipynb rb rs go java cpp hpp cs php sh bat exe dll zip tar gz rar iso dmg png
jpg jpeg gif svg bmp webp mp3 mp4 wav flac ogg avi mov mkv onnx bin sql db bak tmp env lock net
""")
SAID = {
    "com": "com", "org": "org", "net": "net", "edu": "edu", "gov": "gov", "mil": "mil", "info": "info",
    "biz": "biz", "dev": "dev", "app": "app", "blog": "blog", "shop": "shop", "store": "store",
    "site": "site", "online": "online", "tech": "tech", "cloud": "cloud", "co": "co", "me": "me",
    "doc": "doc", "json": "json", "yaml": "yaml", "toml": "toml", "log": "log", "go": "go", "java": "java",
    "bat": "bat", "zip": "zip", "tar": "tar", "gif": "gif", "jpeg": "J peg", "wav": "wav", "flac": "flac",
    "bin": "bin", "onnx": "onnx", "env": "env", "lock": "lock", "mp3": "M P 3", "mp4": "M P 4",
    "conf": "conf", "webp": "web P", "ipynb": "I P Y N B",
}  # fmt: skip
"""Endings that are read as words; all others are spelt."""

# -- capitals ---------------------------------------------------------------------------------------

SHORT_WORDS = listed("""
ACT ADD AGO ALL AM AN AND ANY ARE ART AS ASK AT BAD BE BED BIG BIT BOX BOY BUS BUT BUY BY CAN CAR
CAT CUT DAY DID DIE DO DOG EAT EGG END EYE FAR FEW FLY FOR FUN GET GO GOT GUN GUY HAD HAS HAT HE HER
HEY HIM HIS HIT HOT HOW I ICE IF IN IS IT ITS JOB JOY KEY KID LAW LET LIE LOT LOW MAD MAN MAY ME MEN
MIX MOM MY NEW NO NOR NOT NOW ODD OF OFF OH OIL OLD ON ONE OR OUR OUT OWN PAY PUT RED RUN SAD SAW
SAY SEA SEE SHE SIT SIX SKY SO SON SUN TAX TEA TEN THE TO TOO TOP TRY TWO UP USE WAR WAS WAY WE WET
WHO WHY WIN WON YES YET YOU GIF LAN MAC PIN RAM ROM SIM
""")
"""Words of up to three capitals that are words and not acronyms."""
SAID_AS_WORDS = listed("ASCII CAPTCHA TOML")
"""Acronyms of four letters or more that are read as words although they do not look it."""
SPELT = listed("""
AARP ACLU AFAIK ASAP ASMR ASPCA BYOB HIIT ICBM IIRC IMHO ISBN ISSN ITAR IUCN LMAO NCAA OECD UCLA
UCSB UCSD UNHCR USAF USCG USDA USMC USPS USSR YMCA YWCA
""")
"""Acronyms of four letters or more that are spelt although they look like words."""
PARTLY_SPELT = {
    "JPEG": "J peg", "MPEG": "M peg", "PhD": "P H D", "PhDs": "P H D's", "MSc": "M S C", "BSc": "B S C",
    "IoT": "I O T", "iOS": "I O S", "macOS": "mac O S", "NAACP": "N double A C P", "AAA": "triple A",
    "IEEE": "I triple E", "OAuth": "O auth", "WiFi": "Wi-Fi", "DevOps": "dev ops",
    "MLOps": "M L ops", "WWI": "W W one", "WWII": "W W two",
}  # fmt: skip
