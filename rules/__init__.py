"""The questions this product answers, one line each: a new question starts as a line here.

A rule takes facts and gives back a decision, both frozen values. It has no socket, file, database, clock or dice:
`now` and randomness are arguments. The SMTP server, the milter and the quarter-hour run ask the same functions.

| question                                                        | answered by                       |
|-----------------------------------------------------------------|-----------------------------------|
| What does this MAIL or RCPT argument say?                       | `path.parse`                      |
| Where does mail for this address go?                            | `address.route`                   |
| Which Welyb address stands for this collector, and back?        | `address.to_welyb`, `to_collector`|
| May this peer send there?                                       | `access.may_send`                 |
| In whose name is this mail written?                             | `author.domain`                   |
| Does that domain vouch for it, and what does it ask for if not? | `dmarc.discover`, `conclude`      |
| May it, with what SPF, DKIM and DMARC then say of the author?    | `access.at_end`                   |
| In which words is the next host told so?                        | `authentication.results`          |
| As what does a relayed mail leave?                              | `form.form`                       |
| Does a mailbox's service ask whether mail may be forwarded here? | `forwarding.claimed`, `proved`, `read` |
| May one more come now, from there or for that?                 | `throttle.wait`, `taken`          |
| Is this part of a mail a document, and do we take it?           | `attachment.judge`                |
| What is this document called, and in which folder does it go?   | `filing.safe_name`, `filing.folder` |
| Which slug is this client's?                                    | `filing.slug`                     |
| What changed in this connected folder, and what does it mean?   | `deposit.decide`                  |
| May this delivery change so, and when is its next attempt?      | `lifecycle.after`, `reschedule`   |
| When is the next run, and was one missed?                       | `lifecycle.next_run`, `catch_up`  |
| What does this answer of the far side mean, and for how much?   | `outcome.of_reply`, `of_fault`    |
| Has this client fallen silent?                                  | `silence.look`                    |
| Which TLS must this host give us?                               | `tls.policy`                      |
| Is this host one of its domain's MTA-STS policy?                | `sts.allows`                      |
| Does DANE vouch for this certificate?                           | `dane.vouches`, `dane.anchors`    |
| Is this a bounce, and of what?                                  | `bounce.read`                     |
| What must DNS say of this domain?                               | `records.records`                 |
| Does it, and which line mends it?                               | `published.compare`               |
| Do we tell the sender that it failed?                           | `notification.decide`             |
| In which words do we say so?                                    | `replies`                         |
"""
