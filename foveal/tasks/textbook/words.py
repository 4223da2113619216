"""The words of the textbook in five languages: what is asked, and what the pictures print."""

from __future__ import annotations

from typing import Any

LANGUAGES = ("en", "de", "es", "fr")
"""Those that Pillow's own font can print; "ru" needs DejaVu Sans."""
DECIMAL_COMMA = ("de", "es", "fr", "ru")

ENGLISH: dict[str, Any] = {
    "exercise": "Exercise",
    "chapter": ("Chapter", "Unit", "Lesson"),
    "solution": "Solution:",
    "divided": "÷",
    "units": {"kg": "kg", "cm": "cm", "N": "N"},
    "in_picture": ("Solve the exercise in the picture.", "Read the exercise and solve it."),
    "explain": (
        "Explain how you find it, then give the answer.",
        "Reason step by step and give the answer at the end.",
        "Show your working first.",
    ),
    "blank": (
        "Which number belongs in the box?",
        "One number of the worked solution is missing. What belongs in the empty box?",
        "Complete the worked solution: which number is missing?",
    ),
    "rules": {
        "triangle": "The angles of a triangle add up to 180°.",
        "line": "All parts of the line are equally long.",
        "fraction": "All parts are equally large.",
        "balance": "The scale is balanced.",
        "slope": "One square is one unit.",
        "venn": "Each number counts the pupils in its region.",
        "lever": "The lever is balanced.",
    },
    "triangle": {"x": ("How large is the angle x?", "Find the angle x in degrees.")},
    "line": {"A": ("Which number does the arrow A point to?", "What is the value at A?")},
    "fraction": {
        "part": ("What fraction of the figure is shaded?", "Which fraction is coloured?"),
        "amount": (
            "How much does the shaded part stand for?",
            "Work out the value of the coloured part.",
        ),
    },
    "balance": {"x": ("How heavy is one box x, in kg?", "Find the mass x of one box in kg.")},
    "slope": {
        "m": ("What is the slope m of the line?", "Find the slope m of the line."),
        "b": (
            "At which value b does the line cross the y axis?",
            "Find the y intercept b of the line.",
        ),
    },
    "venn": {
        "all": ("How many pupils are in the group {a}?", "How many pupils take part in {a}?"),
        "union": (
            "How many pupils are in at least one of the two groups?",
            "How many pupils are in {a} or {b} or both?",
        ),
        "one": (
            "How many pupils are in exactly one of the two groups?",
            "How many pupils are in one group only?",
        ),
        "missing": (
            "Which number belongs at the question mark?",
            "Find the number that is missing in the diagram.",
        ),
    },
    "lever": {
        "F": ("How large is the force F, in newtons?", "Find the force F in newtons."),
        "d": ("How long is the distance d, in cm?", "Find the distance d in cm."),
    },
    "whole": "whole: {n}",
    "pupils": "{n} pupils in all",
    "groups": ("Music", "Sport", "Art", "Chess", "Drama", "Dance"),
}

GERMAN: dict[str, Any] = {
    "exercise": "Aufgabe",
    "chapter": ("Kapitel", "Einheit", "Lektion"),
    "solution": "Lösung:",
    "divided": ":",
    "units": {"kg": "kg", "cm": "cm", "N": "N"},
    "in_picture": ("Löse die Aufgabe im Bild.", "Lies die Aufgabe und löse sie."),
    "explain": (
        "Erkläre deinen Weg und nenne dann das Ergebnis.",
        "Überlege Schritt für Schritt und nenne am Ende das Ergebnis.",
        "Zeige zuerst deinen Rechenweg.",
    ),
    "blank": (
        "Welche Zahl gehört in das Kästchen?",
        "In der Lösung fehlt eine Zahl. Was gehört in das leere Kästchen?",
        "Ergänze die Lösung: Welche Zahl fehlt?",
    ),
    "rules": {
        "triangle": "Die Winkelsumme im Dreieck beträgt 180°.",
        "line": "Alle Abschnitte sind gleich lang.",
        "fraction": "Alle Teile sind gleich groß.",
        "balance": "Die Waage ist im Gleichgewicht.",
        "slope": "Ein Kästchen ist eine Einheit.",
        "venn": "Jede Zahl zählt die Kinder in ihrem Feld.",
        "lever": "Der Hebel ist im Gleichgewicht.",
    },
    "triangle": {"x": ("Wie groß ist der Winkel x?", "Bestimme den Winkel x in Grad.")},
    "line": {"A": ("Auf welche Zahl zeigt der Pfeil A?", "Welcher Wert gehört zu A?")},
    "fraction": {
        "part": (
            "Welcher Bruchteil der Figur ist gefärbt?",
            "Gib den gefärbten Anteil als Bruch an.",
        ),
        "amount": ("Wie viel ist der gefärbte Teil?", "Berechne den Wert des gefärbten Teils."),
    },
    "balance": {
        "x": ("Wie schwer ist eine Kiste x in kg?", "Bestimme die Masse x einer Kiste in kg.")
    },
    "slope": {
        "m": ("Welche Steigung m hat die Gerade?", "Bestimme die Steigung m der Geraden."),
        "b": (
            "Bei welchem Wert b schneidet die Gerade die y-Achse?",
            "Bestimme den y-Achsenabschnitt b der Geraden.",
        ),
    },
    "venn": {
        "all": (
            "Wie viele Kinder sind in der Gruppe {a}?",
            "Wie viele Kinder gehören zur Gruppe {a}?",
        ),
        "union": (
            "Wie viele Kinder sind in mindestens einer der beiden Gruppen?",
            "Wie viele Kinder sind bei {a} oder {b} oder bei beiden?",
        ),
        "one": (
            "Wie viele Kinder sind in genau einer der beiden Gruppen?",
            "Wie viele Kinder sind nur in einer Gruppe?",
        ),
        "missing": (
            "Welche Zahl gehört an die Stelle des Fragezeichens?",
            "Bestimme die Zahl, die im Diagramm fehlt.",
        ),
    },
    "lever": {
        "F": ("Wie groß ist die Kraft F in Newton?", "Bestimme die Kraft F in Newton."),
        "d": ("Wie groß ist der Abstand d in cm?", "Bestimme den Abstand d in cm."),
    },
    "whole": "Ganzes: {n}",
    "pupils": "{n} Kinder insgesamt",
    "groups": ("Musik", "Sport", "Kunst", "Schach", "Theater", "Tanz"),
}

SPANISH: dict[str, Any] = {
    "exercise": "Ejercicio",
    "chapter": ("Capítulo", "Unidad", "Lección"),
    "solution": "Solución:",
    "divided": ":",
    "units": {"kg": "kg", "cm": "cm", "N": "N"},
    "in_picture": ("Resuelve el ejercicio de la imagen.", "Lee el ejercicio y resuélvelo."),
    "explain": (
        "Explica cómo lo calculas y después da el resultado.",
        "Razona paso a paso y da el resultado al final.",
        "Muestra primero tus cálculos.",
    ),
    "blank": (
        "¿Qué número va en el recuadro?",
        "En la solución falta un número. ¿Qué va en el recuadro vacío?",
        "Completa la solución: ¿qué número falta?",
    ),
    "rules": {
        "triangle": "Los ángulos de un triángulo suman 180°.",
        "line": "Todos los tramos tienen la misma longitud.",
        "fraction": "Todas las partes son iguales.",
        "balance": "La balanza está en equilibrio.",
        "slope": "Un cuadrado es una unidad.",
        "venn": "Cada número cuenta los alumnos de su zona.",
        "lever": "La palanca está en equilibrio.",
    },
    "triangle": {"x": ("¿Cuánto mide el ángulo x?", "Halla el ángulo x en grados.")},
    "line": {"A": ("¿Qué número señala la flecha A?", "¿Qué valor corresponde a A?")},
    "fraction": {
        "part": (
            "¿Qué fracción de la figura está coloreada?",
            "Escribe como fracción la parte coloreada.",
        ),
        "amount": (
            "¿Cuánto vale la parte coloreada?",
            "Calcula el valor de la parte coloreada.",
        ),
    },
    "balance": {"x": ("¿Cuánto pesa una caja x, en kg?", "Halla la masa x de una caja en kg.")},
    "slope": {
        "m": ("¿Cuál es la pendiente m de la recta?", "Halla la pendiente m de la recta."),
        "b": (
            "¿En qué valor b corta la recta al eje y?",
            "Halla la ordenada en el origen b de la recta.",
        ),
    },
    "venn": {
        "all": (
            "¿Cuántos alumnos hay en el grupo {a}?",
            "¿Cuántos alumnos pertenecen al grupo {a}?",
        ),
        "union": (
            "¿Cuántos alumnos están en al menos uno de los dos grupos?",
            "¿Cuántos alumnos están en {a}, en {b} o en ambos?",
        ),
        "one": (
            "¿Cuántos alumnos están en exactamente uno de los dos grupos?",
            "¿Cuántos alumnos están en un solo grupo?",
        ),
        "missing": (
            "¿Qué número va en lugar del signo de interrogación?",
            "Halla el número que falta en el diagrama.",
        ),
    },
    "lever": {
        "F": ("¿Cuánto vale la fuerza F, en newtons?", "Halla la fuerza F en newtons."),
        "d": ("¿Cuánto mide la distancia d, en cm?", "Halla la distancia d en cm."),
    },
    "whole": "entero: {n}",
    "pupils": "{n} alumnos en total",
    "groups": ("Música", "Deporte", "Arte", "Ajedrez", "Teatro", "Danza"),
}

FRENCH: dict[str, Any] = {
    "exercise": "Exercice",
    "chapter": ("Chapitre", "Unité", "Leçon"),
    "solution": "Solution :",
    "divided": ":",
    "units": {"kg": "kg", "cm": "cm", "N": "N"},
    "in_picture": ("Résous l'exercice de l'image.", "Lis l'exercice et résous-le."),
    "explain": (
        "Explique ta démarche, puis donne le résultat.",
        "Raisonne étape par étape et donne le résultat à la fin.",
        "Montre d'abord tes calculs.",
    ),
    "blank": (
        "Quel nombre va dans la case ?",
        "Il manque un nombre dans la solution. Que faut-il écrire dans la case vide ?",
        "Complète la solution : quel nombre manque ?",
    ),
    "rules": {
        "triangle": "La somme des angles d'un triangle est 180°.",
        "line": "Les graduations sont régulières.",
        "fraction": "Toutes les parts sont égales.",
        "balance": "La balance est en équilibre.",
        "slope": "Un carreau vaut une unité.",
        "venn": "Chaque nombre compte les élèves de sa zone.",
        "lever": "Le levier est en équilibre.",
    },
    "triangle": {"x": ("Combien mesure l'angle x ?", "Calcule l'angle x en degrés.")},
    "line": {
        "A": ("Quel nombre la flèche A indique-t-elle ?", "Quelle est la valeur au point A ?")
    },
    "fraction": {
        "part": (
            "Quelle fraction de la figure est coloriée ?",
            "Écris sous forme de fraction la partie coloriée.",
        ),
        "amount": (
            "Combien vaut la partie coloriée ?",
            "Calcule la valeur de la partie coloriée.",
        ),
    },
    "balance": {
        "x": ("Combien pèse une boîte x, en kg ?", "Calcule la masse x d'une boîte en kg.")
    },
    "slope": {
        "m": ("Quelle est la pente m de la droite ?", "Calcule la pente m de la droite."),
        "b": (
            "En quelle valeur b la droite coupe-t-elle l'axe des y ?",
            "Trouve l'ordonnée à l'origine b de la droite.",
        ),
    },
    "venn": {
        "all": (
            "Combien d'élèves y a-t-il dans le groupe {a} ?",
            "Combien d'élèves font partie du groupe {a} ?",
        ),
        "union": (
            "Combien d'élèves sont dans au moins un des deux groupes ?",
            "Combien d'élèves sont dans {a}, dans {b} ou dans les deux ?",
        ),
        "one": (
            "Combien d'élèves sont dans exactement un des deux groupes ?",
            "Combien d'élèves sont dans un seul groupe ?",
        ),
        "missing": (
            "Quel nombre faut-il écrire à la place du point d'interrogation ?",
            "Trouve le nombre qui manque dans le diagramme.",
        ),
    },
    "lever": {
        "F": ("Combien vaut la force F, en newtons ?", "Calcule la force F en newtons."),
        "d": ("Combien mesure la distance d, en cm ?", "Calcule la distance d en cm."),
    },
    "whole": "entier : {n}",
    "pupils": "{n} élèves en tout",
    "groups": ("Musique", "Sport", "Dessin", "Échecs", "Théâtre", "Danse"),
}

RUSSIAN: dict[str, Any] = {
    "exercise": "Задание",
    "chapter": ("Глава", "Раздел", "Урок"),
    "solution": "Решение:",
    "divided": ":",
    "units": {"kg": "кг", "cm": "см", "N": "Н"},
    "in_picture": ("Реши задачу на картинке.", "Прочитай задание и реши его."),
    "explain": (
        "Объясни ход решения, затем дай ответ.",
        "Рассуждай шаг за шагом и в конце дай ответ.",
        "Сначала покажи вычисления.",
    ),
    "blank": (
        "Какое число должно стоять в рамке?",
        "В решении пропущено одно число. Что должно стоять в пустой рамке?",
        "Дополни решение: какого числа не хватает?",
    ),
    "rules": {
        "triangle": "Сумма углов треугольника равна 180°.",
        "line": "Все отрезки прямой одинаковой длины.",
        "fraction": "Все части равны.",
        "balance": "Весы находятся в равновесии.",
        "slope": "Одна клетка равна единице.",
        "venn": "В каждой области указано число учеников.",
        "lever": "Рычаг находится в равновесии.",
    },
    "triangle": {"x": ("Чему равен угол x?", "Найди угол x в градусах.")},
    "line": {"A": ("На какое число указывает стрелка A?", "Какое значение соответствует A?")},
    "fraction": {
        "part": ("Какая часть фигуры закрашена?", "Запиши закрашенную часть в виде дроби."),
        "amount": ("Чему равна закрашенная часть?", "Вычисли значение закрашенной части."),
    },
    "balance": {"x": ("Сколько килограммов весит ящик x?", "Найди массу x одного ящика в кг.")},
    "slope": {
        "m": (
            "Чему равен угловой коэффициент m прямой?",
            "Найди угловой коэффициент m прямой.",
        ),
        "b": (
            "При каком значении b прямая пересекает ось y?",
            "Найди ординату b точки пересечения прямой с осью y.",
        ),
    },
    "venn": {
        "all": ("Сколько учеников в группе «{a}»?", "Сколько учеников входит в группу «{a}»?"),
        "union": (
            "Сколько учеников входит хотя бы в одну из двух групп?",
            "Сколько учеников в группе «{a}», в группе «{b}» или в обеих?",
        ),
        "one": (
            "Сколько учеников входит ровно в одну из двух групп?",
            "Сколько учеников входит только в одну группу?",
        ),
        "missing": (
            "Какое число должно стоять вместо вопросительного знака?",
            "Найди число, которого не хватает на диаграмме.",
        ),
    },
    "lever": {
        "F": ("Чему равна сила F в ньютонах?", "Найди силу F в ньютонах."),
        "d": ("Чему равно расстояние d в сантиметрах?", "Найди расстояние d в сантиметрах."),
    },
    "whole": "целое: {n}",
    "pupils": "Всего учеников: {n}",
    "groups": ("Музыка", "Спорт", "Рисование", "Шахматы", "Театр", "Танцы"),
}

WORDS: dict[str, dict[str, Any]] = {
    "en": ENGLISH,
    "de": GERMAN,
    "es": SPANISH,
    "fr": FRENCH,
    "ru": RUSSIAN,
}
