"""Every text that leaves for a person: the reply of each refusal, and the reason shown in the history.

Knows alone: the words, their SMTP codes (RFC 5321 §4.2, RFC 3463) and how a reply is folded into lines.
SMTP replies are printable ASCII (RFC 5321 §4.2); accents belong to the history, to bounces and to pages.
A reason is kept as a code and its facts, and put into words when it is read: the reader chooses the language.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_LINE = 512  # RFC 5321 §4.5.3.1.5, the CRLF counted
MAX_FILES = 10  # then a count


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply: `code` like 550, `enhanced` like "5.1.1" or "", the lines without code or CRLF."""

    code: int
    enhanced: str
    lines: tuple[str, ...]

    def render(self) -> bytes:
        """The reply as it goes on the wire (RFC 5321 §4.2.1), every line with its code and CRLF."""
        status = f"{self.enhanced} " if self.enhanced else ""
        *rest, last = (status + _printable(line) for line in self.lines)
        head = "".join(f"{self.code}-{line}"[: MAX_LINE - 2] + "\r\n" for line in rest)
        return (head + f"{self.code} {last}"[: MAX_LINE - 2] + "\r\n").encode("ascii")

    @property
    def final(self) -> bool:
        return self.code >= 500

    def text(self) -> str:
        return " / ".join(self.lines)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a delivery is where it is: a code of HISTORY and the facts its sentence needs (JSON types only)."""

    code: str
    facts: Mapping[str, str | int] | None = None


def _fixed(code: int, enhanced: str, text: str) -> Reply:
    return Reply(code, enhanced, (text,))


UNREADABLE = _fixed(501, "5.1.3", "Adresse illisible (bad address syntax)")
MALFORMED = _fixed(553, "5.1.3", "Adresse de collecte mal formee (malformed address)")
UNKNOWN = _fixed(550, "5.1.1", "Adresse de collecte inconnue (unknown address)")
NOT_ALLOWED = _fixed(550, "5.7.1", "Envoi non autorise vers cette adresse (not permitted)")
UNVERIFIED = _fixed(451, "4.4.3", "Expediteur non verifiable pour l'instant, reessayez (cannot verify the sender now)")
SEVERAL_AUTHORS = _fixed(550, "5.7.1", "Plusieurs auteurs dans From, un seul attendu (more than one author in From)")
NOT_ASCII = _fixed(553, "5.6.7", "Adresse non ASCII non prise en charge (non-ASCII address not supported)")
NO_DOCUMENT = _fixed(554, "5.6.0", "Aucun document joint (no document attached)")
BARE_NEWLINE = _fixed(550, "5.5.2", "Fin de ligne incorrecte (bare CR or LF)")
TROUBLE = _fixed(451, "4.3.0", "Incident temporaire (temporary failure)")
DISK_LOW = _fixed(452, "4.3.1", "Espace disque insuffisant, reessayez plus tard (insufficient storage)")
LOOP = _fixed(554, "5.4.6", "Boucle de messagerie detectee (mail loop detected)")
MESSAGE_TOO_BIG = _fixed(552, "5.3.4", "Message trop volumineux (message too large)")
HEADER_TOO_BIG = _fixed(552, "5.3.4", "En-tetes trop volumineux (header block too large)")
TOO_MANY_PARTS = _fixed(550, "5.6.0", "Trop de parties dans le message (too many parts)")
TOO_DEEP = _fixed(550, "5.6.0", "Message trop imbrique (nested too deeply)")
TOO_MANY_RECIPIENTS = _fixed(452, "4.5.3", "Trop de destinataires (too many recipients)")
THROTTLED = _fixed(450, "4.7.1", "Trop d'envois, reessayez plus tard (too much mail, try again later)")
NO_RECIPIENTS = _fixed(503, "5.5.1", "Aucun destinataire valable (no valid recipients)")
FRAGMENT = _fixed(554, "5.6.1", "Message partiel ou externe non pris en charge (partial or external body refused)")
SHUTDOWN = _fixed(421, "4.3.2", "Arret en cours, reessayez plus tard (shutting down)")
TIMEOUT = _fixed(421, "4.4.2", "Delai depasse (timeout)")
TOO_MANY_CONNECTIONS = _fixed(421, "4.7.0", "Trop de connexions (too many connections)")
TOO_MANY_ERRORS = _fixed(421, "4.7.0", "Trop d'erreurs (too many errors)")
TLS_FIRST = _fixed(530, "5.7.0", "Lancez d'abord STARTTLS (must issue STARTTLS first)")
AUTH_FIRST = _fixed(530, "5.7.0", "Authentification requise (authentication required)")
AUTH_NEEDS_TLS = _fixed(538, "5.7.11", "Chiffrement requis pour s'authentifier (encryption required)")
AUTH_OK = _fixed(235, "2.7.0", "Authentification reussie (authentication succeeded)")
AUTH_FAILED = _fixed(535, "5.7.8", "Identifiant ou mot de passe incorrect (invalid credentials)")
AUTH_OVER = _fixed(421, "4.7.0", "Trop d'echecs d'authentification (too many authentication failures)")
AUTH_BUSY = _fixed(454, "4.7.0", "Authentification impossible, reessayez (temporary authentication failure)")
AUTH_CANCELLED = _fixed(501, "5.7.0", "Authentification abandonnee (authentication cancelled)")
AUTH_UNREADABLE = _fixed(501, "5.5.2", "Reponse illisible (cannot decode response)")
AUTH_MECHANISM = _fixed(504, "5.5.4", "Mecanisme inconnu, PLAIN ou LOGIN (unrecognized authentication type)")
RECIPIENT_OK = _fixed(250, "2.1.5", "Destinataire accepte (recipient ok)")


def accepted(message: str) -> Reply:
    """The 250 after the message. It ends with our id, which `trace` accepts."""
    return _fixed(250, "2.0.0", f"Message accepte (accepted) {message}")


def unauthenticated(domain: str, why: str) -> Reply:
    """The author's domain asks that mail be refused which it does not vouch for; `why` it does not, in a few words."""
    author = to_ascii(domain)[:253]
    text = f"{author} : expediteur non authentifie, {to_ascii(why)}, ce domaine demande le refus (DMARC reject policy)"
    return _fixed(550, "5.7.1", text)


MAX_VIRUS = 60  # characters of its name that are told


def infected(name: str) -> Reply:
    """The refusal of a mail in which a virus was found. The name is a scanner's, and cleaned."""
    told = "".join(c for c in to_ascii(name) if c.isalnum() or c in "._:/+-")[:MAX_VIRUS] or "?"
    return _fixed(554, "5.7.1", f"Message refuse : virus detecte, {told} (virus found)")


# --- refused documents ----------------------------------------------------------------------------------------------

# reason code → (SMTP code, enhanced, order; the text after "NAME : "). Type before size: that is what the order says.
_DOCUMENT: dict[str, tuple[int, str, int, str]] = {
    "zip": (554, "5.6.1", 1, "archive ZIP non prise en charge, joignez les documents separement (ZIP refused)"),
    "zip-disguised": (
        554,
        "5.6.1",
        1,
        "archive ZIP cachee dans un fichier {type}, joignez les documents separement (ZIP refused)",
    ),
    "zip-damaged": (554, "5.6.1", 1, "archive endommagee, joignez le document d'origine (damaged archive refused)"),
    "office-hostile": (
        554,
        "5.6.1",
        1,
        "fichier bureautique contenant un programme ou une archive (executable content refused)",
    ),
    "archive": (
        554,
        "5.6.1",
        1,
        "archive {type} non prise en charge, joignez les documents separement (archive refused)",
    ),
    "executable": (554, "5.6.1", 1, "programme non pris en charge (executable refused)"),
    "html": (554, "5.6.1", 1, "page HTML non prise en charge, joignez un PDF, type reel {type} (HTML refused)"),
    "type": (554, "5.6.1", 1, "type {type} non pris en charge, joignez un PDF (type not accepted)"),
    "tnef": (554, "5.6.1", 1, "format Outlook winmail.dat, renvoyez en texte brut ou HTML (TNEF refused)"),
    "opaque": (
        554,
        "5.6.1",
        1,
        "message signe ou chiffre opaque, joignez le document en clair (opaque S/MIME refused)",
    ),
    "entities": (554, "5.6.1", 1, "XML declarant des entites, non pris en charge (XML entities refused)"),
    "nested": (554, "5.6.0", 1, "trop imbrique, joignez le document directement (nested too deeply)"),
    "truncated": (554, "5.6.0", 1, "piece jointe endommagee, renvoyez-la (damaged attachment)"),
    "empty": (554, "5.6.0", 1, "document vide, 0 octet (empty document)"),
    "too-big": (552, "5.3.4", 2, "document trop volumineux, {size_mo} Mo, limite {limit_mo} Mo (over {limit_mb} MB)"),
}

HISTORY: dict[str, tuple[str, str]] = {
    "zip": (
        "Non pris en compte : archive ZIP. Déposez séparément les documents qu'elle contient.",
        "Not taken: ZIP archive. Deposit the documents it contains separately.",
    ),
    "zip-disguised": (
        "Non pris en compte : archive ZIP cachée dans un fichier {type}. Déposez séparément les documents.",
        "Not taken: a ZIP archive hidden in a {type} file. Deposit the documents separately.",
    ),
    "zip-damaged": (
        "Non pris en compte : archive endommagée. Déposez le document d'origine.",
        "Not taken: damaged archive. Deposit the original document.",
    ),
    "office-hostile": (
        "Non pris en compte : fichier bureautique contenant un programme ou une archive. Déposez un PDF.",
        "Not taken: office file holding a program or an archive. Deposit a PDF.",
    ),
    "archive": (
        "Non pris en compte : archive {type}. Déposez séparément les documents qu'elle contient.",
        "Not taken: {type} archive. Deposit the documents it contains separately.",
    ),
    "executable": ("Non pris en compte : programme. Déposez un PDF.", "Not taken: executable. Deposit a PDF."),
    "html": (
        "Non pris en compte : page HTML (type réel {type}). Déposez un PDF.",
        "Not taken: HTML page (real type {type}). Deposit a PDF.",
    ),
    "type": (
        "Non pris en compte : type {type} non accepté. Déposez un PDF.",
        "Not taken: type {type} not accepted. Deposit a PDF.",
    ),
    "tnef": (
        "Non pris en compte : format Outlook winmail.dat. Renvoyez le message en texte brut ou HTML.",
        "Not taken: Outlook winmail.dat. Send the message again as plain text or HTML.",
    ),
    "opaque": (
        "Non pris en compte : message signé ou chiffré opaque. Joignez le document en clair.",
        "Not taken: opaque S/MIME. Attach the document in clear.",
    ),
    "entities": (
        "Non pris en compte : XML déclarant des entités. Déposez un XML sans DOCTYPE.",
        "Not taken: XML declaring entities. Deposit an XML without a DOCTYPE.",
    ),
    "nested": (
        "Non pris en compte : trop imbriqué. Joignez le document directement.",
        "Not taken: nested too deeply. Attach the document directly.",
    ),
    "truncated": (
        "Non pris en compte : pièce jointe endommagée. Renvoyez-la.",
        "Not taken: damaged attachment. Send it again.",
    ),
    "empty": ("Non pris en compte : document vide (0 octet).", "Not taken: empty document (0 bytes)."),
    "too-big": (
        "Trop volumineux : {size_spaced} octets ({size_mo} Mo), limite {limit_mo} Mo.",
        "Too big: {size} bytes ({size_mb} MB), limit {limit_mb} MB.",
    ),
    "waiting": ("En attente d'envoi, nouvel essai à {at}.", "Waiting to be sent, next attempt at {at}."),
    "deferred": (
        "En attente d'envoi, nouvel essai à {at}. Dernière réponse : {reply}",
        "Waiting to be sent, next attempt at {at}. Last answer: {reply}",
    ),
    "ged-away": (
        "En attente de classement : la GED est indisponible, nouvel essai à {at}.",
        "Waiting to be filed: the GED is unavailable, next attempt at {at}.",
    ),
    "failed": ("Refusé par le destinataire : {reply}", "Refused by the recipient: {reply}"),
    "expired": (
        "Abandonné après {days} jours d'essais. Dernière réponse : {reply}",
        "Given up after {days} days. Last answer: {reply}",
    ),
    "far-size": (
        "Trop volumineux pour le destinataire : {size_spaced} octets, limite annoncée {limit_spaced} octets.",
        "Too big for the recipient: {size} bytes, announced limit {limit} bytes.",
    ),
    "far-8bit": (
        "Le destinataire n'accepte pas les messages 8 bits (5.6.3).",
        "The recipient does not take 8-bit messages (5.6.3).",
    ),
    "null-mx": (
        "Le domaine du destinataire ne reçoit pas de courrier (MX nul, 5.1.10).",
        "The recipient's domain takes no mail (null MX, 5.1.10).",
    ),
    "bounced": ("Retourné par le destinataire : {reply}", "Returned by the recipient: {reply}"),
    "modified": (
        "Modifié depuis l'envoi : la nouvelle version n'est pas envoyée sans votre accord (release).",
        "Modified since it was sent: the new version is not sent without your word (release).",
    ),
    "origin": (
        "Document reçu de l'application elle-même : il ne lui est pas renvoyé.",
        "Document that came from the application itself: it is not sent back to it.",
    ),
    "duplicate": (
        "Déjà envoyé ou en cours d'envoi ({twin}) : non envoyé une seconde fois.",
        "Already sent or on its way ({twin}): not sent a second time.",
    ),
    "kept": (
        "Gardé ici : aucun postmaster n'est configuré ([relay] postmaster).",
        "Kept here: no postmaster is configured ([relay] postmaster).",
    ),
    "handed": (
        "Remis au serveur de messagerie, qui l'envoie lui-même : son journal dit si le message est arrivé.",
        "Left to the mail server, which sends it on itself: its log says whether it arrived.",
    ),
    "held": ("Retenu par {actor} : {why}", "Held by {actor}: {why}"),
    "dropped": ("Abandonné par {actor} : {why}", "Dropped by {actor}: {why}"),
    "released": ("Libéré par {actor} : {why}", "Released by {actor}: {why}"),
    "bytes-missing": (
        "Le contenu manque dans le stockage : vérifiez la sauvegarde, puis « queue retry ».",
        "The bytes are missing from the spool: look at the backup, then `queue retry`.",
    ),
    "restored": (
        "Retenu après une restauration : peut-être déjà parti depuis la sauvegarde du {backup}. "
        "Vérifiez auprès du destinataire, puis « queue release » ou « queue drop ».",
        "Held after a restore: it may have left since the backup of {backup}. "
        "Ask at the receiving end, then `queue release` or `queue drop`.",
    ),
    "client-ambiguous": (
        "Deux dossiers portent ce nom de client : renommez l'un d'eux.",
        "Two folders bear this client's name: rename one.",
    ),
    "address": (
        "Adresse incorrecte : saisissez meg+nomsociete@welyb.fr ou meg+achats+nomsociete@welyb.fr.",
        "Wrong address: type meg+company@welyb.fr or meg+achats+company@welyb.fr.",
    ),
    "replaced": (
        "Modifié avant l'envoi : les nouveaux octets partent à sa place ({by}).",
        "Changed before it was sent: the new bytes go in its place ({by}).",
    ),
    "connection-doubt": (
        "Dossier connecté douteux ({doubt}) : rien n'en est conclu. Vérifiez que son disque est monté ; "
        "s'il est bien ainsi : connections accept.",
        "Connected folder in doubt ({doubt}): nothing is concluded from it. See that its disk is mounted; "
        "if it is right as it is: connections accept.",
    ),
    "silent": (
        "{client} : aucun document depuis le {since}, {documents} auparavant. "
        "Vérifiez avec le cabinet que l'envoi automatique fonctionne.",
        "{client}: no document since {since}, {documents} before. Ask the firm whether its automatic sending works.",
    ),
    "unsettled": (
        "Encore en cours d'écriture : regardé de nouveau au prochain passage.",
        "Still being written: looked at again by the next run.",
    ),
    # why a part of a mail is not a document
    "skip-text": ("texte du message", "text of the message"),
    "skip-signature": ("signature électronique", "digital signature"),
    "skip-calendar": ("invitation de calendrier", "calendar invitation"),
    "skip-vcard": ("carte de visite", "contact card"),
    "skip-report": ("rapport de messagerie", "mail report"),
    "skip-image": ("petite image de présentation ({size} octets)", "small image of the layout ({size} bytes)"),
}


def history(reason: Reason, language: str = "fr") -> str:
    """The sentence of a reason, in "fr" or "en"."""
    french, english = HISTORY[reason.code]
    return (english if language == "en" else french).format_map(_Facts(reason.facts or {}))


class _Facts(dict[str, object]):
    """Facts with what the sentences derive from them; an absent one shows as "?", for an old row must stay readable."""

    def __missing__(self, key: str) -> object:
        name, _, form = key.rpartition("_")
        if name not in ("size", "limit") or name not in self or form not in ("spaced", "mo", "mb"):
            return "?"
        number = int(str(self[name]))
        if form == "spaced":
            return f"{number:,}".replace(",", "\u202f")
        shown = _exact(number) if name == "limit" else _rounded(number, int(str(self.get("limit", 0))))
        return shown.replace(".", "," if form == "mo" else ".")


def _exact(number: int) -> str:
    """Millions: 10000000 → "10"; 10485760 → "10.48576"."""
    return f"{number / 1_000_000:.6f}".rstrip("0").rstrip(".")


def _rounded(number: int, limit: int) -> str:
    """Millions: 11000000 → "11.0", but 10000001 → "10.000001": never rounded to the wrong side of a limit."""
    tenth = round(number / 100_000)
    return _exact(number) if number > limit >= tenth * 100_000 else f"{tenth / 10:.1f}"


def refused_documents(refused: Sequence[tuple[str, Reason]]) -> Reply:
    """The reply that names every refused file with its reason: up to ten, then a count. Type before size.

    `refused` holds (file name, reason), at least one. The code is that of the first after sorting.
    """
    order = sorted(refused, key=lambda item: _DOCUMENT[item[1].code][2])
    code, enhanced, _, _ = _DOCUMENT[order[0][1].code]
    lines = [_document_line(name, reason) for name, reason in order[:MAX_FILES]]
    if len(order) > MAX_FILES:
        more = len(order) - MAX_FILES
        lines.append(f"et {more} autre{'s' * (more > 1)} fichier{'s' * (more > 1)} (and {more} more)")
    return Reply(code, enhanced, tuple(lines))


def _document_line(name: str, reason: Reason) -> str:
    text = _DOCUMENT[reason.code][3].format_map(_Facts(reason.facts or {}))
    return f"{to_ascii(name)[:200] or '(sans nom)'} : {text}"


# --- ASCII ----------------------------------------------------------------------------------------------------------

_LETTERS = {
    "œ": "oe",
    "Œ": "OE",
    "æ": "ae",
    "Æ": "AE",
    "ß": "ss",
    "ø": "o",
    "Ø": "O",
    "ł": "l",
    "Ł": "L",
    "€": "EUR",
    "\u2019": "'",
    "\u2018": "'",
    "\u2013": "-",
    "\u2014": "-",
    "\u00ab": '"',
    "\u00bb": '"',
    "\u2026": "...",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2212": "-",
}


def to_ascii(text: str) -> str:
    """`text` transliterated to printable ASCII; what has no likeness becomes `?`, controls too."""
    spelled = "".join(_LETTERS.get(c, c) for c in text)
    bare = "".join(c for c in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(c))
    return _printable(bare)


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)
