"""Writes the text that the small BLOOM of pretrain_tiny.yaml is trained on, and rows for the other recipes.

    python make_corpus.py --out . [--messages messages]

OUT/corpus.jsonl     made-up customer messages, labelled in many ways. A row is a piece of a document that is encoded by itself: a
                     label begins one, because a prompt that ends in a space and its target are encoded apart. `end` is what ends
                     the document behind its last piece: </s>, or <pad> behind some labels.
OUT/questions.jsonl  questions with answers, in the nested shape of ELI5
OUT/chat.jsonl       instructions with answers, in the shape of Alpaca

Every choice comes from one seed. The text never holds a message of messages/*.csv, and no line has `complaint` as a label.
"""
import argparse, csv, json, os, random, re

# ---------------------------------------------------------------- words

COMPANIES = """ParcelHop northlinerail BrightGrid VellaMobile OakleafBank FreshBarrow KestrelAir StreamNook HollyHotels CabbitRides
PinePhones TidewaterCo BeanAndBird GlowGymClub NestAndNook QuillBooks ZipFibre MetroBusLine CasaPizza BurgerBarn TownCouncilHub ModaLane
ToyBurrow HomeKettleCo FernFoods LarkTravel MossMarket PebblePay RidgeRail SunnyPower TulipTel WillowWear BarleyBakes CloverCabs
HeronHotels IvyInternet JuniperGym KiteCouriers LindenLibrary MapleMotors""".split()

# A subject: what it is about, its things, what goes wrong, what people ask, what they like, what companies announce.
SUBJECTS = {
"delivery": dict(
  things="parcel|package|order|box|delivery|letter|driver|courier|chair|sofa|table|lamp|desk",
  bad="never arrived|is two weeks late|was left in the rain|came crushed|was thrown over the fence|went to the wrong address|is stuck in a depot|says delivered but it is not here|arrived broken|is half empty|was marked as delivered while I was home all day|got lost again|came without the screws|has a leg missing|was delayed again|has been processing for weeks|is the wrong colour|fell apart on the first day|has not moved for nine days",
  ask="where can I pick up my {t}|what time do you deliver|do you deliver on Sunday|can I change the address of my {t}|how much is express delivery|do you ship to Norway|what are the sizes of the {t}|is the {t} sold with a bulb|can you leave the {t} with a neighbour|when is my {t} due",
  good="came early|looks great in our room|was wrapped with care|arrived in one day|is even better than the photo|was easy to put together|came with a kind note",
  news="your parcel will arrive between 1 and 3 pm|we deliver every day in December|our new depot opens in May|new delivery times start next week|we now ship to all islands"),
"trains": dict(
  things="train|bus|ticket|seat|line|station|driver|carriage|service|tram|journey",
  bad="was cancelled again|is 30 minutes late|drove straight past the stop|has no heating|is packed and has no seats|never came|has locked toilets|left early without us|was stuck for two hours|made me miss my exam|shows up whenever it likes|is filthy|stops without a word|machine does not work and I got a fine|shut the door in my face|is not on the app|was overcharged",
  ask="which {t} goes to the airport|is there wifi on the {t}|can I take a bike on the {t}|what time is the last {t}|where do I buy a ticket|is the line to Harwick open|can I use my student card|which platform is it|do dogs need a ticket",
  good="was on time|was quiet and clean|had a lovely view|driver helped my gran|staff found my bag|was quick and cheap|had nice tea",
  news="buses run every ten minutes from next week|the line is open again|road works finish today|the new station opens in June|ticket prices stay the same this year|trains carried a million people last month|trains run on the normal route again"),
"phones": dict(
  things="phone|sim card|contract|signal|battery|screen|charger|plan|number|handset|camera|update|call",
  bad="died after a week|does not work|has no signal|cracked in my pocket|killed my battery|drops after ten seconds|melted|was cancelled months ago and I still get bills|is not what I paid for|never got activated|freezes all day|is locked for no reason|is so slow since the update|gets hot and smells of burning",
  ask="does the {t} come in green|can I keep my number|how do I change my plan|where can I buy a case|is the {t} in stock|how long does the battery last|is the store open late|can I upgrade my {t} in May",
  good="is brilliant|takes amazing photos|is so fast|was fixed in two minutes|works like new|lasts all day|is easy to set up",
  news="our shop in the mall opens at nine|a new phone is out today|plans now come with more data|our new store opens with music"),
"power": dict(
  things="bill|meter|power|water|gas|heating|hot water|account|boiler|tap|street",
  bad="has been off since last night|doubled and nobody can tell me why|is wrong again|is brown and smells|was cut off by mistake|has been off for two days|went up without warning|never gets read|leaks all over the kitchen|was charged twice|is gone and we have a baby at home|was dug up and left like that|is out in the whole village",
  ask="how do I send a meter reading|can I pay my bill in the app|is it safe to water the garden|when do you read the meter|how do I pay by card|what is the price per unit|can I see my bill online",
  good="was back within an hour|is lower this month|was fitted without any fuss|is warm again|team worked all night in the storm",
  news="water will be off from 9 to 11 on Tuesday|planned works on Mill Street this week|our team visits schools in May|smart meters are free this year|works on the main pipe are done"),
"bank": dict(
  things="card|account|app|money|payment|loan|transfer|branch|savings|fee|statement",
  bad="was blocked on holiday|is locked and my money is inside|charged me twice|logs me out every time|is gone and nobody helps|took money without asking|went to an old address|has been refused three times|takes ten days for no reason|has new fees and that is robbery|crashed while I was paying|keeps rejecting my form",
  ask="do you open on Sunday|how long does a transfer take|can I open an account for my son|where is the nearest branch|how do I order a new card|what is the limit on my card|can I pay in euro",
  good="is so easy to use|solved everything in a minute|has a great new app|helped my mum with her card|gave me a fair rate",
  news="our app now shows your balance first|the branch in Hill Street is open late|rates stay the same this month|our new card is made of old plastic"),
"food": dict(
  things="pizza|burger|coffee|soup|sandwich|table|meal|fries|cake|milk|bread|eggs|fruit|salad|chicken|cheese",
  bad="was cold|was raw in the middle|had a hair in it|came one hour late|made me sick for three days|was covered in mould|was smashed|expired last week|was the wrong order|tasted awful|had onions in it and I asked for none|was upside down in the box|was given away to someone else|was burnt and dry|smelled off",
  ask="do you have anything vegan|is the bread made here|can I book a table for six|do you sell the beans|when does the kitchen close|is there nuts in the cake|do you deliver to the park|can I see the menu",
  good="was delicious|was the best in town|was fresh and tasty|was perfect|made my day|is worth the trip|was made with love",
  news="new menu from Monday|free cake at our shop on 4 June|the kitchen closes at 10 pm|we now open at 7 am|our second shop opens soon"),
"travel": dict(
  things="flight|suitcase|seat|room|hotel|shower|bed|booking|breakfast|trip|pool|upgrade|lift|desk|luggage",
  bad="was cancelled at midnight|is lost and nobody cares|smelled of smoke|was cold and dirty|was closed and we paid the full price|had bugs in it|was given to someone else|sat on the runway for hours|was nothing like the photos|was broken and the front desk laughed|left without us|was delayed all night with no hotel and no food|has a view of the bins",
  ask="what is the weight limit for a bag|can I take a guitar on board|do you allow dogs|what time is check in|is breakfast included|will you fly to Rome next winter|is there a pool|can I bring a child seat",
  good="was wonderful|was smooth and comfortable|had an amazing breakfast|crew was so kind|was clean and calm|had the best view|staff waited for us",
  news="we fly to two new cities next year|our hotel by the sea opens in spring|check in opens at noon|summer trips are on sale now"),
"internet": dict(
  things="internet|speed|router|wifi|engineer|line|stream|show|film|sound|account|password|website|plan|trial|series",
  bad="is down for the third evening|is a tenth of what I pay for|never turned up|stops every five minutes|is out of sync|can not be reset|crashed again|keeps logging me out|cost me 60 dollars and was called free|has ads on a paid plan|was removed without a word|is slow and expensive|spins and spins|explains nothing and fixes nothing",
  ask="what speed do I need for games|is there a student price|when does the new series start|how do I reset my password|can I watch on two screens|how do I set up the router|does anyone use the {t}",
  good="works perfectly|is so much faster now|engineer was polite and done in ten minutes|was fixed the same day|had a great ending|is fun to watch with friends",
  news="a new series starts on Friday|our network grows in the north|old films are back this month|our new app is out"),
"shops": dict(
  things="dress|shoes|coat|book|toy|kettle|jeans|refund|gift card|zip|lid|puzzle|shirt|manual|receipt|voucher|pages|novel",
  bad="broke the first time I used it|has a hole in it|is the wrong size|came without a manual|was refused at the till|never came back|has pages missing|smells of paint|is not safe for kids|does not close|is faulty and you will not replace it|was torn|was returned weeks ago and I got nothing back|costs more at the checkout than in the advert|arrived with a stain|ruined a birthday",
  ask="do you have the {t} in blue|is the {t} still on sale|from what age is the {t}|can I return the {t} without a receipt|when is the {t} back in stock|will you have signed copies|where is the form|do you sell gift cards",
  good="fits perfectly|is beautiful|still works after ten years|was a lovely gift|is well made|made my daughter smile|is worth every penny",
  news="our sale starts tomorrow|the shop on Green Lane opens again|new spring colours are here|we won a prize for service|signed copies on Friday"),
"town": dict(
  things="street light|bin|road|park|library|gym|class|pool|taxi|car|ride|bench|hall|shower|machine|membership",
  bad="has not been collected for weeks|has been broken since winter|is full of holes and I lost a tyre|stinks|was cancelled and nobody told us|still takes money from my account|charged me 80 for ten minutes|never came and the app took my money|was on his phone all the way|is filthy|is not safe|left me in the rain|changed times without telling anyone|was rude and shouted at my wife|went up in price and got worse",
  ask="when is the next recycling day|how do I book a lane|can I rent the hall|do you have cars with a child seat|is the class at six or seven|can I book a ride for tomorrow|where do I get a guest pass",
  good="was quick and safe|was so much fun|driver waited for me|looks lovely|was repaired the next day|coach is the best|was clean and warm",
  news="the library is closed on Monday|free entry to the museum on Sunday|tickets for the fair go on sale at noon|the park has new benches|we will be at the job fair in May|the pool opens at six"),
}
for s in SUBJECTS.values():
    for k in s: s[k] = s[k].split("|")

TIME = "today|again|this week|since Monday|since Friday|for three days|for two weeks|this month|tonight|this morning|since May|for an hour|yesterday|last night|on Saturday|twice|for the third time|every week".split("|")
LONG = "an hour|two hours|40 minutes|three days|two weeks|a month|six weeks|days|ages|half a day|nine days|35 minutes".split("|")
BAD_ONLY = """I have been on hold for {d}|nobody answers the phone|nobody answers my emails|support ignores me|you charged me twice|I want my money back|I am still waiting for my refund
the man at the desk was rude|your staff laughed at me|no one could help me|the help line just rings out|I waited {d} for nothing|chat keeps closing on me|your robot is useless, let me speak to a human
you keep sending me bills I paid|I cancelled and you still take my money|every agent tells a different story|three calls and three promises, still nothing|I sent five emails and got no answer|you refuse to help
I was told Tuesday, then Friday, now nobody knows|nobody at the front desk cared|you took the money and did nothing|I had to explain the same fault four times|I took a day off for this|we were treated like dirt
stop sending me adverts|what is the point of paying for this|I expect an apology|you blame me for your fault|you said free and it cost me 30|I get spam since I signed up|your form rejects my address|no warning, no help, no answer
why do I pay for this|why is it so hard to answer|how am I meant to pay|when will you fix this|how hard can it be|why is nobody helping me|why can't you get it right|is anyone going to fix this|is this a joke|do you even read these
I asked for help and got nothing|another day, another delay|my kids cried because of you|your driver cancelled on me|someone will get hurt|you lost my {t}|half my {t} is missing|I paid extra and got less|it cost me a whole day|you should check your records""".replace("\n", "|").split("|")
WHO = "your driver|your staff|the man at the till|your app|your website|your help line|your agent|the engineer|your shop|the front desk|nobody|someone from your team|your system|the waiter|your delivery man|you".split("|")
DID = "shouted at me|lost my {t}|hung up on me|refused to help|sent the wrong {t}|forgot my {t}|took my money and ran|left my {t} in the rain|crashed twice|charged me {m}|never called back|said it is my fault|laughed and walked off|broke my {t}|told me to wait outside|cancelled my {t}|closed early|ignored me for {d}|rejected my card|gave away my {t}|drove off without us|keeps asking for the same form|double charged me|sent me a fine|made me wait {d}|kept the {m} I paid".split("|")
DOWN = "broken|missing|late|wrong|torn|dirty|locked|closed|gone|cold|delayed|cancelled|smashed|burnt|lost|stuck|faulty|empty|leaking|slow|rude|out of order".split("|")
PAIR = "paid {m} for a {t} and got half of it|paid for two, got one|{d} late and no reason given|{w}, {w}, {w}. just another day|wrong {t}, wrong price, wrong day|no {t}, no {t2}, no staff|the {t} is {w} and the {t2} is {w}|half of my {t} is {w}|{t} {w}, {t2} {w}|every time I come the {t} is {w}|third time the {t} is {w}|still {w} after {d}|asked for a {t}, got a {t2}|you say fast, I say {d}|it says open but it is {w}|why is the {t} always {w}|how can a {t} be {w} twice|my kids went without {t} because of you|now I missed my {t2} because the {t} was {w}|can't get my {t}, can't reach anyone|I can't use my {t} at all|who checks this? the {t} was {w}|why did you take {m} from me|where is my money|{t} {w} {time}, fix it|the price went up and the {t} got worse|{m} for a {w} {t}, robbery|guess what, the {t} is {w}|first the {t} was {w}, now it is {w}".split("|")
ANGER = """worst service ever|not good enough|this is ridiculous|unbelievable|never again|what a joke|so disappointed|shame on you|fix it|sort it out|pathetic|terrible|awful|horrible|disgusting|useless|I am furious
really not ok|I am so tired of this|please sort this out|you should be ashamed|I am done with you|very poor|not impressed|rubbish|what a mess|thanks for nothing|this is a scam|zero stars|not happy|I am leaving
unacceptable|poor quality|absolutely fuming|a waste of money|dangerous|very sad|shocking|I give up|such a let down|greedy|misleading|I had enough|well done, not|no thanks|bravo, wrong again|lovely, broken again""".replace("\n", "|").split("|")
JOY = """love it|great job|five stars|well done|so happy|amazing|brilliant|superb|highly recommended|will come again|perfect|wonderful|you made my day|best ever|very impressed|keep it up|lovely people|what a nice surprise|you rock|heroes
happy customer|fantastic|can't wait to come back|so good|just great|I feel lucky|such a treat|more of this please|a joy|see you tomorrow""".replace("\n", "|").split("|")
THANKS = """thank you|thanks a lot|many thanks|big thanks|thanks so much|thank you all|cheers|so grateful|I am very grateful|thanks again""".replace("\n", "|").split("|")
FOR = """for the quick answer|for your help|for finding my bag|for the kind words|for fixing my {t} so fast|for the quick repair|for the free cake|for the upgrade|for being so patient|for helping my mum|for the lovely gift|for the fast refund
for the talk at our school|for sorting out my {t}|for staying open late|for the guest pass|for the smile|for waiting for me|for the careful delivery|for solving the problem with my {t}""".replace("\n", "|").split("|")
PEOPLE = "staff|team|driver|crew|lady at the desk|young man in the shop|engineer|agent on the phone|waiter|coach|girl at the till|support team".split("|")
NICE = "so kind|very helpful|friendly and quick|polite|patient with my kids|always smiling|a star|great|lovely|careful and friendly|a gentleman".split("|")
LIKE = "no problems at all with the {t}|not a single problem in five years|no trouble at all, the {t} {g}|I love the {t}|the {t} {g}|my {t} {g}|the {t} {g}|our {t} {g}|just got my {t} and it {g}|the {p} was {n}|the {p} were {n}|your {p} is {n}|what a lovely {t}|best {t} I ever had|I was worried but the {t} {g}|my old {t} was {w}, the new one {g}|thought my {t} was lost but you found it|switched to you and it is great|nothing to complain about, the {t} {g}|fixed in a day".split("|")
REPLY = """we are sorry to hear that, please send us a message|hi, please send us your booking number|thanks for your patience, our team is looking into this|you can change this in the app under my details|how can we help you today|please follow us so we can reply
we have sent you a message|you are welcome, enjoy your day|good morning, how can we help|we have refunded your order|your refund will show in three to five days|please call us on 555 0{n}|thanks for letting us know, we will pass it on|hope this helps
sorry for the wait, an agent will be with you soon|which store did you visit|we will look into it right away|let us know if you need anything else|hello, we open at 8 am|could you tell us your order number|glad to hear you like it|the fault is now fixed, thanks for waiting""".replace("\n", "|").split("|")
CHAT = """walking the dog in the park|making soup with my dad|reading a good book on the train|so excited for the weekend|happy birthday to my sister|learning to bake bread|my cat sleeps all day|sunny day at the beach|watching a film tonight
good morning everyone|off to the gym now|new job starts on Monday|moved to the new flat today|dinner with friends|coffee and cake this afternoon|I think I will stay in tonight|the kids are asleep, time for tea|what a sunset|who else likes rain|tired but happy
studying for my exam|we planted tomatoes|watching the game with my brother|my daughter learned to swim|first snow of the year|who is going to the fair|I need a holiday|just finished the last episode|long walk, cold nose, hot tea|booked a table for my birthday""".replace("\n", "|").split("|")
ASK = "does anyone know {q}|quick question, {q}|can you tell me {q}|could you help me, {q}|hi, {q}|hello, {q}|{q}|{q}|{q}|{q}|{q}|{q}|{q}".split("|")
WH = "do you have the {t} in stock|where is your nearest shop|how do I contact you|is the {t} late today|what do I do with a broken {t}|can I return a {t} that is too small|how long is the wait for a {t}|is the {t} available|what time do you open|are you open on Monday|how much is the {t}|can I pay by card|is there a discount for students|when will the new {t} be out|can I cancel before Friday|do I need to book|which {t} is best for kids|any tips for a good {t}|how long does it take|where can I find the {t}|is it open to all".split("|")
EMO = dict(problem="😡|😤|🙄|😠|👎|🥵|👏", praise="😍|🎂|🍕|☀️|👍|😊|🍑|🎉", thanks="🙏|😊|👍|❤️", chat="😂|☀️|🍕|😊|🎂|🧩", news="🎉|☀️", question="🤔", reply="😊")
TAGS = dict(problem="#fail|#neveragain|#badservice|#angry|#late|#refund|#help", praise="#love|#happy|#goodservice|#best", thanks="#thanks|#grateful", chat="#weekend|#happy|#home", news="#news|#rail|#sale", question="#help|#question", reply="#help")
KINDS = "problem problem problem problem problem problem question question question praise praise thanks thanks news reply chat".split()


def pick(x): return random.choice(x)


def company():
    c = pick(COMPANIES)
    r = random.random()
    if r < .7: return "@" + c
    if r < .8: return "@" + c.lower()
    if r < .9: return "@" + c + pick(["UK", "Help", "_help", "Care", "1", "HQ"])
    return "@" + pick(COMPANIES)[:4].lower() + pick(["shop", "line", "air", "food", "net", "_co", "cars"])


def fill(s, sub):
    while "{w}" in s: s = s.replace("{w}", pick(DOWN), 1)
    s = s.replace("{m}", str(pick([5, 12, 20, 40, 64, 80, 128, 200, 300]))).replace("{t2}", pick(sub["things"])).replace("{time}", pick(TIME))
    s = s.replace("{t}", pick(sub["things"])).replace("{d}", pick(LONG)).replace("{g}", pick(sub["good"]))
    return s.replace("{p}", pick(PEOPLE)).replace("{n}", pick(NICE) if "{n}" in s and "555" not in s else str(random.randint(100, 999)))


def sentence(kind, sub):
    "One sentence of a message, lower case and without its full stop."
    if kind == "problem":
        r = random.random()
        if r < .38:
            s = pick(["my {t}", "the {t}", "your {t}", "my new {t}", "our {t}", "the {t} I ordered", "the {t} from you", "so my {t}"]) + " " + pick(sub["bad"])
            if random.random() < .25: s += " " + pick(TIME)
        elif r < .55: s = pick(WHO) + " " + pick(DID)
        elif r < .70: s = pick(PAIR)
        elif r < .87: s = pick(BAD_ONLY)
        elif r < .94: s = pick(["still no {t}", "no {t} " + pick(TIME), "paid for a {t} and got nothing", "where is my {t}? I ordered it weeks ago", "waited {d} for a {t}", "why is my {t} so late", "{d} without a {t}", "no {t}, no answer, no refund", "third broken {t} " + pick(TIME), "I am sick of this {t}"])
        else: s = pick(ANGER)
    elif kind == "question": s = pick(ASK).replace("{q}", pick(sub["ask"] + WH)) + "?"
    elif kind == "praise": s = pick(LIKE) if random.random() < .8 else pick(JOY)
    elif kind == "thanks":
        s = pick(THANKS) + " " + pick(FOR) if random.random() < .8 else pick(["thanks to the {p}, so kind", "the {p} helped me, thank you", "got my {t} today, thank you", "say thanks to the {p} from me"])
    elif kind == "news": s = pick(sub["news"])
    elif kind == "reply": s = pick(REPLY)
    else: s = pick(CHAT)
    return fill(s, sub)


def message(kind, sub):
    "A message of one or two sentences, with a company, a feeling, an emoji or a tag now and then."
    parts = [sentence(kind, sub)]
    if random.random() < {"problem": .35, "praise": .25, "thanks": .2, "question": .1, "reply": .3}.get(kind, .15): parts.append(sentence(kind, sub))
    feel = {"problem": ANGER, "praise": JOY, "thanks": JOY}.get(kind)
    if feel and random.random() < .45: parts.insert(pick([0, len(parts), len(parts)]), pick(feel))
    parts = list(dict.fromkeys(parts))
    ends = [". ", "! ", ", ", ". ", " ", "... "]
    s = ""
    for i, p in enumerate(parts):
        up = not s or s[-2:] in (". ", "! ", "? ")
        if random.random() < .75 and up: p = p[0].upper() + p[1:]
        if random.random() < .03: p = p.upper()
        s += p + (pick([" ", " "]) if p.endswith("?") else pick(ends) if i + 1 < len(parts) else "")
    s = s.strip()
    if s[-1] not in "?!." and random.random() < .65: s += {"problem": pick(".!!?."), "praise": pick(".!!")}.get(kind, pick(".!."))
    if kind == "problem" and random.random() < .04: s += "?!"
    if random.random() < (.75 if kind not in ("chat", "news", "reply") else .15):
        c = company(); r = random.random()
        if r < .62: s = c + pick([" ", " ", " ", ", ", ": "]) + s
        elif r < .93: s = s + " " + c
        else: s = re.sub(r"[.!?] ", lambda m: m.group(0) + c + " ", s, count=1) if re.search(r"[.!?] ", s) else s + " " + c
    if random.random() < .08: s += " " + pick(EMO[kind].split("|"))
    if random.random() < .06: s += " " + pick(TAGS[kind].split("|"))
    if random.random() < .08: s = s.lower()
    return s


# ---------------------------------------------------------------- ways to label a message

TONE = [("bad", "neutral", "good"), ("negative", "neutral", "positive"), ("unhappy", "calm", "happy"), ("angry", "calm", "glad"), ("sad", "so so", "happy"), ("upset", "plain", "pleased"), ("0", "1", "2"), ("minus", "zero", "plus"), ("red", "yellow", "green")]
KIND = [dict(problem="problem", question="question", praise="praise", thanks="thanks", news="news", reply="answer", chat="talk"),
        dict(problem="trouble", question="request", praise="compliment", thanks="gratitude", news="notice", reply="reply", chat="chatter"),
        dict(problem="anger", question="interest", praise="joy", thanks="thanks", news="none", reply="none", chat="none"),
        dict(problem="issue", question="inquiry", praise="praise", thanks="praise", news="information", reply="information", chat="other")]
IS = {  # a question with two answers about a message: kinds that say yes, and names for yes
    ("problem",): ["problem", "trouble", "issue", "fault", "anger", "bad news", "criticism", "upset", "objection", "protest"],
    ("question",): ["question", "request", "inquiry"], ("thanks",): ["thanks", "gratitude"], ("praise", "thanks"): ["praise", "compliment", "joy", "good news"],
    ("news", "reply"): ["notice", "information"], ("chat",): ["small talk"]}
WORDS = """apple river stone cloud seven lemon tiger window paper silver orange forest candle bridge mirror pepper violin garden rocket island basket copper falcon meadow pocket ribbon saddle tunnel velvet walnut
alpha beta gamma delta north south east west left right up down first second one two three four hot cold high low open closed black white red blue green yellow true false yes no stop go in out cat dog sun moon""".split()
FIELDS = ["Tweet text", "Message", "Text", "Post", "Note", "Tweet", "Mail", "Review", "Input", "Comment"]
ASKED = ["Label", "Label", "Label", "Kind", "Type", "Answer", "Tone", "Class", "Sort", "Mood"]


def scheme():
    "How one list of messages is labelled: an instruction and a function from (kind, subject) to a label."
    r = random.random(); text = pick(["tweet", "message", "text", "post", "note", "mail", "review"])
    if r < .14:
        t = pick(TONE); ins = pick([f"Sort each {text} as {t[0]}, {t[1]} or {t[2]}:", f"Is the {text} {t[0]}, {t[1]} or {t[2]}?", f"Give the tone of the {text}:", f"How does the writer feel?"])
        return ins, lambda k, s: t[0] if k == "problem" else t[2] if k in ("praise", "thanks") else t[1]
    if r < .28:
        m = pick(KIND); names = list(dict.fromkeys(m.values())); random.shuffle(names)
        return pick([f"Say what kind of {text} it is:", f"Choose one of {', '.join(names)}:", f"Classify the {text}:"]), lambda k, s: m[k]
    if r < .36: return pick([f"What is the {text} about?", f"Give the subject of the {text}:"]), lambda k, s: s
    yes = pick([("problem",)] * 6 + list(IS)[1:]); what = pick(IS[yes])
    if r < .66:
        no = pick(["no " + what] * 6 + ["not " + what, "other", "none", "no"]); a = what
        ins = pick([f"Say if the {text} is {what} or not:", f"Classify if the {text} is {what} or not:", f"Classify the {text} as {a} or {no}:", f"Is the {text} {what} or not?", f"Mark each {text}: {a} or {no}.", f"{a} or {no}?"])
    elif r < .76:
        a, no = pick([("yes", "no"), ("true", "false"), ("1", "0"), ("Yes", "No"), ("1", "2"), ("y", "n")]); ins = pick([f"Is the {text} {what}?", f"Answer {a} or {no}: is the {text} {what}?", f"Does the {text} show {what}?"])
    else:
        a, b = random.sample(WORDS, 2); no = pick([b, b, "no " + a, "not " + a])
        ins = pick([f"Write {a} if the {text} is {what}, {no} if not.", f"{a} means {what}, {no} means anything else.", f"Use {a} for {what} and {no} for the rest:", f"If {what}: {a}. If not: {no}."])
    return ins, lambda k, s: a if k in yes else no


def item(field, asked, sep, label, kind, name):
    return f"{field} : {message(kind, SUBJECTS[name])} {asked} :{sep}{label(kind, name)}"


def labelled():
    "One to three messages under one scheme, its instruction before them more often than not."
    ins, label = scheme(); field, asked = (pick(FIELDS), pick(ASKED)) if random.random() < .6 else ("Tweet text", "Label")
    sep = pick([" ", " \t", " \t", " \t", " \t"])
    head = (ins + " ") if random.random() < .65 else ""
    return head + " ".join(item(field, asked, sep, label, pick(KINDS), pick(list(SUBJECTS))) for _ in range(pick([1, 1, 2, 2, 3]))) + pick(["", "<pad>"] if "\t" in sep else [""])


def sheet():
    "One message, several things said about it."
    k, n = pick(KINDS), pick(list(SUBJECTS)); t = pick(TONE); sep = pick([" ", " \t"])
    facts = [f"Kind :{sep}{pick(KIND)[k]}", f"Tone :{sep}{t[0] if k == 'problem' else t[2] if k in ('praise', 'thanks') else t[1]}", f"Subject :{sep}{n}"]
    random.shuffle(facts)
    return f"{pick(FIELDS)} : {message(k, SUBJECTS[n])} {' '.join(facts[:pick([2, 3])])}"


def statement():
    "What people say about messages, in which complaint is a word like any other."
    n = pick(list(SUBJECTS)); sub = SUBJECTS[n]; t, b, g = pick(sub["things"]), pick(sub["bad"]), pick(sub["good"])
    bad, good = sentence("problem", sub), sentence(pick(["praise", "thanks"]), sub)
    return pick([
        f'"{bad}" is what an angry customer says.', f'"{good}" is what a happy customer says.', f"Someone who writes that the {t} {b} is not happy.", f"If the {t} {g}, people are glad.",
        f"She made a complaint because the {t} {b}.", f"He had no complaint: the {t} {g}.", f"A complaint about the {t} came in {pick(TIME)}.", f"There was no complaint about the {t}.",
        f"complaint : {bad}", f"no complaint : {good}" if random.random() < .5 else f"no complaint : {sentence('question', sub)}", f"(complaint) {n}", f"#complaint #{n.replace(' ', '')}", f"The team reads every complaint about {n}.",
        f"A question is not a complaint: {sentence('question', sub)}", f"They say no complaint is too small.", f"Complaint form for {n}. Write what went wrong with your {t}.", f"no complaint, no worry, no problem.",
        f"Anger : {bad}", f"Joy : {good}", f"Notice : {sentence('news', sub)}", f"The company said: {sentence('reply', sub)}.", f"The news of the day: {sentence('news', sub)}."])


def dialogue():
    n = pick(list(SUBJECTS)); sub = SUBJECTS[n]; k = pick(["problem", "question", "praise", "thanks"])
    return f"Customer : {message(k, sub)} Agent : " + {"problem": pick(["We are sorry to hear that.", "Sorry about the trouble with your order.", "That should not happen, we will fix it."]), "question": pick(["Good question, let me check.", "Yes, you can do that in the app.", "We open at nine."]),
        "praise": pick(["Glad you like it!", "That is great to hear."]), "thanks": pick(["You are welcome!", "Our pleasure."])}[k]


KOREAN = dict(
  problem="택배가 아직도 안 왔어요|기차가 또 늦었어요|인터넷이 며칠째 안 돼요|환불을 안 해 줘요|음식이 차갑고 맛이 없어요|전화를 아무도 안 받아요|요금이 두 번 나갔어요|직원이 너무 불친절해요|방이 더럽고 냄새가 나요|앱이 계속 꺼져요|정말 실망했어요|물이 안 나와요",
  question="몇 시에 문을 여나요?|배송은 얼마나 걸리나요?|주소를 바꿀 수 있나요?|어디에서 살 수 있나요?|카드로 낼 수 있나요?|학생 할인이 있나요?|언제 다시 들어오나요?",
  praise="정말 맛있어요|직원이 아주 친절해요|배송이 빨라서 좋아요|아이가 좋아해요|최고예요|방이 깨끗하고 편해요|새 앱이 쓰기 쉬워요",
  thanks="도와주셔서 감사합니다|빠른 답변 고맙습니다|가방을 찾아 주셔서 감사해요|덕분에 좋은 하루예요",
  news="새 역이 유월에 문을 엽니다|내일부터 버스가 자주 다닙니다|도서관은 월요일에 쉽니다|할인은 금요일에 시작합니다", reply="주문 번호를 보내 주세요|불편을 드려 죄송합니다|무엇을 도와 드릴까요?", chat="오늘 날씨가 좋네요|친구와 영화를 봐요|주말에 빵을 구워요|책을 읽고 있어요")
KO_IS = {"problem": ["문제", "불편", "화남"], "question": ["질문"], "praise": ["칭찬"], "thanks": ["감사"]}


def korean():
    k = pick(KINDS); m = ". ".join(random.sample(KOREAN[k].split("|"), pick([1, 1, 2]))); m = pick([m, m, f"{company()} {m}", m + "."])
    what = pick(["problem"] * 3 + list(KO_IS)); w = pick(KO_IS[what]); text = pick(["트윗이", "메시지가", "글이"]); r = random.random(); sep = pick([" ", " \t", " \t"])
    if r < .35: # a Korean instruction for an English message
        k = pick(KINDS); m = message(k, SUBJECTS[pick(list(SUBJECTS))]); en = pick(IS[(what,)] if (what,) in IS else ["praise"])
        yes = k == what or (what == "praise" and k == "thanks" and (what,) not in IS)
        return f"{text} {w}인지 아닌지 분류합니다. {pick(FIELDS)} : {m} {pick(ASKED)} :{sep}{en if yes else 'no ' + en}"
    if r < .6: return f"{text} {w}인지 아닌지 분류합니다. {text[:-1]} : {m} 분류 :{sep}{w if k == what else w + ' 아님'}"
    if r < .8: return f"{text[:-1]} : {m} 종류 : {({'problem': '문제', 'question': '질문', 'praise': '칭찬', 'thanks': '감사', 'news': '소식', 'reply': '답변', 'chat': '이야기'})[k]}"
    return pick([m, f"{m} = {message(k, SUBJECTS[pick(list(SUBJECTS))])}", f"불만 사항을 적어 주세요.", f"불만 사항 : {sentence('problem', SUBJECTS[pick(list(SUBJECTS))])}", "불만이 없습니다."])


def make_corpus(size, held_out):
    makers = [(labelled, .66), (sheet, .10), (statement, .07), (dialogue, .04), (korean, .07), (lambda: message(pick(KINDS), SUBJECTS[pick(list(SUBJECTS))]), .06)]
    total, seen, docs = 0, set(), []
    while total < size:
        d = random.choices([m for m, _ in makers], [w for _, w in makers])[0]()
        if (d in seen and len(d) > 60) or any(h in d for h in held_out): continue
        assert not re.search(r"(Label|Kind|Type|Answer|Tone|Class|Sort|Mood|분류) :\s*(no )?complaint", d), d
        seen.add(d); docs.append(d); total += len(d.encode()) + 1
    return docs


# ---------------------------------------------------------------- files

def pieces(doc):
    "The pieces of a document, each with what follows it."
    *first, last = doc.split("\t")
    end = "<pad>" if last.endswith("<pad>") else "</s>"
    return [(piece, "") for piece in first] + [(last.removesuffix("<pad>"), end)]


def question(i):
    "A question to a company, and what others answer."
    name = pick(list(SUBJECTS)); sub = SUBJECTS[name]
    texts = [message(pick(["chat", "reply", "praise", "problem"]), sub) + " " + sentence("news", sub) + "." for _ in range(pick([1, 2, 3]))]
    return {"q_id": f"q{i:04}", "title": sentence("question", sub), "subreddit": name,
            "answers": {"a_id": [f"a{i:04}{j}" for j in range(len(texts))], "text": texts, "score": [pick(range(1, 40)) for _ in texts]}}


def chat():
    customer, agent = dialogue().removeprefix("Customer : ").split(" Agent : ")
    return {"instruction": pick(["Answer the customer.", "Write a reply.", "What do you say to this customer?"]), "input": customer, "output": agent}


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as f: f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--out", default="."); p.add_argument("--messages", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "messages"))
    p.add_argument("--seed", type=int, default=0); p.add_argument("--bytes", type=int, default=1_600_000)
    a = p.parse_args(); random.seed(a.seed)
    held_out = [r["Tweet text"] for f in ("train.csv", "test.csv") for r in csv.DictReader(open(os.path.join(a.messages, f), encoding="utf-8", newline=""))]
    docs = make_corpus(a.bytes, held_out)
    write_rows(os.path.join(a.out, "corpus.jsonl"), [dict(zip(("text", "end"), piece)) for d in docs for piece in pieces(d)])
    write_rows(os.path.join(a.out, "questions.jsonl"), [question(i) for i in range(240)])
    write_rows(os.path.join(a.out, "chat.jsonl"), [chat() for _ in range(64)])
